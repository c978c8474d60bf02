"""Evaluating a model at other parameters than its own, for as long as the graph of the evaluation may be walked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_core.errors import DuplicateModuleError, InvalidInputError, NoMatchError
from mtl_core.listing import first_duplicate

__all__ = ["Functional", "placed"]


@contextmanager
def placed(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, tensors in the places of a model's parameters; afterwards the very same ``Parameter`` objects.

    Unlike ``torch.func.functional_call``, which puts the parameters back as soon as the forward pass is done, the
    block may also hold the backward pass. A model that recomputes activations there
    (``torch.utils.checkpoint(..., use_reentrant=False)``) reads its parameters a second time, and would read its own:
    gradients at a displaced point then came out with a cosine of .57 with the right ones, without a word.

    Args:
        model: any module. A parameter that is tied under several names is replaced under all of them.
        tensors: what to place, by qualified name; of the parameters' shapes.

    Raises:
        NoMatchError: a name is none of the model's parameters.
        InvalidInputError: a parameter lies in a sharded module.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> own = model.weight
        >>> with placed(model, {"weight": torch.full((1, 1), 3.0)}):
        ...     float(model(torch.ones(1, 1)))
        3.0
        >>> model.weight is own
        True
    """
    places: dict[int, list[tuple[dict[str, nn.Parameter | None], str]]] = {}
    names: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module._parameters, attribute))
                names[f"{prefix}.{attribute}" if prefix else attribute] = id(parameter)
    strangers = [name for name in tensors if name not in names]
    if strangers:
        raise NoMatchError(
            f"`tensors` must be named as parameters of the model, got {strangers}. Names: {', '.join(names)}."
        )
    _refuse_sharded(model, tensors)
    before: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter | None]] = []
    try:
        for name, tensor in tensors.items():
            for owner, attribute in places[names[name]]:
                before.append((owner, attribute, owner[attribute]))
                owner[attribute] = tensor  # type: ignore[assignment]
        yield
    finally:
        # The other way round: a module that is registered twice is placed twice, and its first entry is its own.
        for owner, attribute, parameter in reversed(before):
            owner[attribute] = parameter


def _check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Make sure that tensors of these names will be used: ``functional_call`` passes over most that it cannot place."""
    strangers = [name for name in names if not _has(model, name)]
    if strangers:
        known = [name for name, _ in model.named_parameters()]
        raise NoMatchError(
            f"`parameters` must be named as parameters of the model, got {strangers}. Names: {', '.join(known)}."
        )
    _refuse_sharded(model, names)


def _has(model: nn.Module, name: str) -> bool:
    path, _, last = name.rpartition(".")
    owner: nn.Module | None = model
    for part in path.split(".") if path else ():
        owner = None if owner is None else owner._modules.get(part)
    return owner is not None and (last in owner._parameters or last in owner._buffers)


def _refuse_sharded(model: nn.Module, names: Iterable[str]) -> None:
    # Before each forward pass the hooks of a sharded module write its parameters over whatever is in their places: the
    # losses came out as if nothing had been replaced. Where nothing has imported the sharding nothing is sharded, and
    # importing it here would cost a second.
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is None:
        return
    named = model.named_modules(remove_duplicate=False)
    within = tuple([f"{name}." if name else "" for name, module in named if isinstance(module, sharding.FSDPModule)])
    found = [name for name in names if name.startswith(within)] if within else []
    if found:
        raise InvalidInputError(
            f"parameters must be whole to be replaced, got {', '.join(found[:4])} of a module under fully_shard, which "
            "puts its own in their places. Replicate the model, with step(group=...)."
        )


class Functional:
    """The losses of a model as a function of its parameters.

    Args:
        model: the model.
        losses: ``losses(model, batch)``.
    """

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], Any]) -> None:
        self._model = model
        self._module = _LossModule(model, losses)
        self._duplicate: tuple[str, str] | Literal[False] | None = False  # False: not looked yet

    def forget(self) -> None:
        """Look through the model again at the next check."""
        self._duplicate = False

    def check(self, names: Iterable[str] = ()) -> None:
        """Make sure that the model can be evaluated with replaced parameters, and that it has those of these names.

        Raises:
            DuplicateModuleError: one submodule is registered under two names, which ``functional_call`` corrupts.
            NoMatchError: the model has no parameter or buffer of a name.
            InvalidInputError: the model is scripted, or a parameter lies in a sharded module.
        """
        if self._duplicate is False:
            scripted = [name for name, m in self._model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
            if scripted:
                raise InvalidInputError(
                    f"`model` must not be scripted to be evaluated at other parameters, got a ScriptModule at "
                    f"{scripted[0]!r}. Give the module that was scripted; what needs no replaced parameters works with "
                    "it."
                )
            self._duplicate = first_duplicate(self._model)
        if isinstance(self._duplicate, tuple):
            first, second = self._duplicate
            raise DuplicateModuleError(
                f"`model` must register each submodule once, got the same module as {first!r} and {second!r}. "
                "Keep one of them, or store the second reference outside the module tree, e.g. in a tuple."
            )
        _check_names(self._model, names)

    def evaluate(self, parameters: Mapping[str, Tensor], batch: Any) -> Any:
        """What the user's function returns at these parameters; the model is not touched.

        Args:
            parameters: tensors in place of the model's own, by qualified name.
            batch: what the losses take.
        """
        replaced = {f"model.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(self._module, replaced, (batch,))


class _LossModule(nn.Module):
    """The model and its losses as one module, so that ``functional_call`` reaches every parameter of the model."""

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Any) -> Any:
        """What the user's function returns."""
        return self._losses(self.model, batch)
