r"""Adapters of the PEFT library, attached in place and taken off without a trace.

The only module that imports ``peft``, and only when an adapter attaches: the import takes seconds.

PEFT changes module classes, names, ``requires_grad`` flags and, on some layers, the model's outputs. So an adapter
is attached only to layer kinds on an allow-list, its start as a no-op is checked on a batch, and the displacement is
read off its own merged weights before everything is put back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_core import DuplicateModuleError, InvalidInputError, Problem, checks
from mtl_core.extension import evaluate_without_graph
from mtl_teleport.adapters.peft_layers import choose_layers
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.adapters.weight_space import Targets
from mtl_teleport.isolation import isolated

__all__ = ["PeftAdapter", "PeftLoRA", "PeftSession"]

_NAME = "teleport"


class PeftAdapter:
    """Any PEFT configuration that starts as a no-op and merges into its layers' weights.

    Args:
        config: a ``peft.PeftConfig``. It is copied; its ``target_modules`` are replaced by the layers that match
            here.
        targets: name patterns of layers; ``None`` for every supported layer of the shared part.

    Raises:
        InvalidInputError: ``config`` is no PEFT configuration.

    Note:
        Supported are exactly ``Linear`` and plain ``Conv2d`` (one group, no dilation, zero padding), the kinds on
        which PEFT 0.21 was seen to start and to merge exactly. On others it is wrong in silence: orthogonal adapters
        change a convolution's output two- to threefold at the start, dilated and grouped convolutions crash or do
        not merge. ``mtl_teleport.LoRA`` reaches every weight.
    """

    def __init__(self, config: Any, *, targets: Targets = None) -> None:
        if not hasattr(config, "peft_type") or not hasattr(config, "target_modules"):
            raise InvalidInputError(
                f"`config` must be a peft.PeftConfig with target_modules, got {type(config).__name__}. For example "
                "peft.LoHaConfig(r=5, alpha=5)."
            )
        self._config = config
        self.targets: tuple[str, ...] | None = (
            (targets,) if isinstance(targets, str) else None if targets is None else tuple(targets)
        )

    def attach(
        self, problem: Problem, *, batch: Any = None, generator: torch.Generator | None = None
    ) -> AdapterSession:
        """Wrap the matching layers in place, and check on ``batch`` that nothing has changed.

        Args:
            problem: the problem whose shared layers are to be adapted; its model in evaluation mode.
            batch: a batch for the check.
            generator: source of the initial values, on the CPU.

        Raises:
            NoMatchError: no shared layer is supported, or a pattern matches none; lists what is.
            DuplicateModuleError: the model registers one submodule twice.
            InvalidInputError: there is no batch, the model has adapters already, PEFT cannot adapt these layers as its
                configuration says, or the losses change when the adapter is attached.
        """
        if batch is None:
            raise InvalidInputError(
                f"`batch` must be given, got None: {type(self).__name__} checks on it that the adapter starts as a "
                "no-op."
            )
        # PEFT looks for its own layers in the whole model and finds those of the other adapter, at whatever depth.
        foreign = [name for name, m in problem.model.named_modules() if type(m).__module__.partition(".")[0] == "peft"]
        if foreign:
            where = f"at {foreign[0]!r}" if foreign[0] else "around it"
            own = type(self).__name__
            raise InvalidInputError(
                f"`model` must have no PEFT adapter of its own to be adapted by {own}, got one {where}. "
                "Use mtl_teleport.LoRA(), which displaces that adapter's own matrices, or make it part of the weights "
                "first: merge_and_unload(), then requires_grad_(True)."
            )
        problem.check_functional()
        layers = choose_layers(problem, self.targets, type(self).__name__)
        with isolated(problem.model):
            before = evaluate_without_graph(problem, batch).full(0.0)
            session = PeftSession(problem, self._config, layers, generator)
            try:
                self._check_no_op(session, batch, before)
            except BaseException:
                session.detach()
                raise
        return session

    def _check_no_op(self, session: AdapterSession, batch: Any, before: Tensor) -> None:
        # Without the adapter the same evaluation has just been made.
        with _told_by_peft(self._config):
            after = session.evaluate_without_graph(batch, parameters=session.parameters()).full(0.0)
        tolerance = 100 * torch.finfo(before.dtype).eps
        if not torch.allclose(before, after, rtol=tolerance, atol=tolerance * float(before.abs().max())):
            raise InvalidInputError(
                f"`config` must start as a no-op, got losses {before.tolist()} before and {after.tolist()} after "
                "attaching "
                f"{type(self._config).__name__}. Leave layers out by `targets`, or use mtl_teleport.LoRA."
            )


class PeftLoRA(PeftAdapter):
    """LoRA by the PEFT library, on linear and plain convolutional layers.

    Args:
        rank: rank ``>= 1``.
        alpha: scale ``> 0``.
        targets: name patterns of layers; ``None`` for every supported layer of the shared part.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, section 4.1;
        appendix table 4 compares ranks and kinds.
    """

    def __init__(self, rank: int = 5, *, alpha: float = 8.0, targets: Targets = None) -> None:
        self.rank = checks.positive_int("rank", rank)
        self.alpha = checks.positive("alpha", alpha)
        super().__init__(_Deferred(), targets=targets)

    def __repr__(self) -> str:
        return f"PeftLoRA(rank={self.rank}, alpha={self.alpha:g}, targets={self.targets})"

    def attach(
        self, problem: Problem, *, batch: Any = None, generator: torch.Generator | None = None
    ) -> AdapterSession:
        """As ``PeftAdapter.attach``; the configuration is made here, so that constructing one imports nothing."""
        if isinstance(self._config, _Deferred):
            from peft import LoraConfig

            self._config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=[])  # type: ignore[arg-type]
        return super().attach(problem, batch=batch, generator=generator)


class _Deferred:
    """Stands in for a configuration whose class is not imported yet."""

    peft_type = "LORA"
    target_modules: tuple[str, ...] = ()


@contextmanager
def _defaults_of(parameter: Tensor) -> Iterator[None]:
    """Torch's default dtype and device are those of a parameter: PEFT makes tensors in the former, on the latter."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(parameter.dtype)
    try:
        with torch.device(parameter.device):
            yield
    finally:
        torch.set_default_dtype(before)


class PeftSession(AdapterSession):
    """A session whose model is wrapped by PEFT until it is detached."""

    def __init__(
        self, problem: Problem, config: Any, layers: dict[str, nn.Module], generator: torch.Generator | None
    ) -> None:
        super().__init__(problem)
        from peft import inject_adapter_in_model

        model = problem.model
        self._config = config
        self._layers = layers
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        self._attached = True
        own = copy.deepcopy(config)
        # As one full-match pattern: PEFT matches listed names as suffixes, and so layers of the heads as well.
        own.target_modules = f"(?:{'|'.join(re.escape(name) for name in layers)})"
        before = {id(p) for p in model.parameters()}
        seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        try:
            # PEFT draws from torch's global generator.
            with torch.random.fork_rng(devices=devices), _defaults_of(next(iter(self.shared.values()))):
                torch.manual_seed(seed)
                with _told_by_peft(config):
                    inject_adapter_in_model(own, model, adapter_name=_NAME)
            for name in layers:
                # PEFT makes its wrappers in training mode, where an adapter's own dropout would draw.
                model.get_submodule(name).train(model.training)
            self._restore_flags()
            found = [p for p in model.parameters() if id(p) not in before and p.requires_grad]
            if not found:
                raise InvalidInputError(
                    f"`config` must bring trainable tensors, got {type(config).__name__} with none."
                )
            self.trainable = tuple(found)
            # A module that is registered twice is corrupted by functional_call.
            if len({id(m) for m in model.modules()}) != sum(1 for _ in model.named_modules(remove_duplicate=False)):
                raise DuplicateModuleError(
                    f"{type(config).__name__} registers a module twice, which functional evaluation cannot handle. "
                    "Use mtl_teleport.LoRA."
                )
        except BaseException:
            self.detach()
            raise
        names = {id(p): name for name, p in model.named_parameters()}
        self._names = {name: names[id(p)] for name, p in self.shared.items()}

    def parameters(self) -> dict[str, Tensor]:
        """The base weights under their present names, each a leaf; the adapter acts in the wrapped layers."""
        return {self._names[name]: p.detach().requires_grad_() for name, p in self.shared.items()}

    def delta(self) -> dict[str, Tensor]:
        """What PEFT's own merge would add to each adapted weight."""
        base = {name: p.data for name, p in self.shared.items()}
        wrappers: list[Any] = [self.problem.model.get_submodule(name) for name in self._layers]
        try:
            # Merged into copies in the parameters' places: whatever breaks the merge off, the values are still there.
            for parameter in self.shared.values():
                parameter.data = parameter.data.clone()
            with _told_by_peft(self._config):
                for wrapper in wrappers:
                    wrapper.merge(safe_merge=False, adapter_names=[_NAME])
            return {
                name: p.detach() - base[name]
                for name, p in self.shared.items()
                if not torch.equal(p.detach(), base[name])
            }
        finally:
            for name, parameter in self.shared.items():
                parameter.data = base[name]
            # In place of unmerge(), which subtracts what was added and leaves its rounding in the weights.
            for wrapper in wrappers:
                wrapper.merged_adapters.clear()

    def detach(self) -> None:
        """Put the very same layers back under their names, and every flag as it was."""
        if not self._attached:
            return
        self._attached = False
        model = self.problem.model
        for name, layer in self._layers.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        # It stays behind on the model, and a second attachment would find it.
        if hasattr(model, "peft_config"):
            del model.peft_config
        self._restore_flags()

    def _restore_flags(self) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


@contextmanager
def _told_by_peft(config: Any) -> Iterator[None]:
    """Say whose error it is, where PEFT cannot do with a layer what its configuration asks for.

    Raises:
        InvalidInputError: from the error of PEFT.
    """
    try:
        yield
    except (InvalidInputError, torch.OutOfMemoryError):
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, ImportError) as error:
        raise InvalidInputError(
            f"`config` must be one by which PEFT can adapt these layers and merge, got {type(config).__name__}: "
            f"{type(error).__name__}: {error} Leave layers out by `targets`, change the setting, or use "
            "mtl_teleport.LoRA."
        ) from error
