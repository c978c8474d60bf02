r"""What an adapter is: a way to move the shared parameters by a trainable :math:`\Delta\theta(\varphi)`.

``adapter.attach(problem)`` opens a session. The session holds the trainable tensors :math:`\varphi`, evaluates the
problem at :math:`\theta + \Delta\theta(\varphi)`, and ends either with ``merge()`` (the displacement is written into
the very same ``Parameter`` objects) or with ``detach()`` (as if nothing had happened).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mtl_core import InvalidInputError, Problem, TaskLosses
from mtl_core.extension import Joint, Root, placed, refuse_reentrant, roots_of, together, without_graph
from mtl_teleport.adapters.displacement import check_displacement
from mtl_teleport.budget import passes
from mtl_teleport.conditions import Conditions
from mtl_teleport.ranks import mean_losses, total
from mtl_teleport.sparse import dense_embeddings

__all__ = ["Adapter", "AdapterSession", "displaced", "write_"]


class AdapterSession(ABC):
    r"""A problem with an adapter attached; counts the passes it is used for.

    Attributes:
        problem: the problem that is adapted.
        shared: its shared parameters by their name *before* attaching, in the model's order.
        trainable: the adapter's tensors :math:`\varphi`, leaves that require a gradient.
        forwards: evaluations of the losses so far.
        backwards: differentiations of the losses so far.
        seconds: those of them whose gradients are to be differentiated again.
        conditions: under which the losses are evaluated and differentiated; set before the first evaluation.
    """

    has_free_point = False
    """Whether ``parameters()`` alone carry the adapter: a graph leads from them to ``trainable`` without the model."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.shared: dict[str, nn.Parameter] = dict(problem.named_shared)
        self.trainable: tuple[Tensor, ...] = ()
        self.forwards = 0
        self.backwards = 0
        self.seconds = 0
        self.conditions = Conditions()
        self._graph_checked = False

    @property
    def passes(self) -> int:
        """All of them in units of an evaluation; see ``mtl_teleport.budget``."""
        return passes(self.forwards, self.backwards, self.seconds)

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """The tensors at which the losses are evaluated, one per shared parameter and in their order.

        Keys are names in the model as it is now. Every value may be differentiated with respect to, and a gradient
        through it reaches ``trainable``.
        """

    @abstractmethod
    def delta(self) -> dict[str, Tensor]:
        """The displacement of each adapted parameter, by its name before attaching; detached."""

    @abstractmethod
    def detach(self) -> None:
        """Take the adapter off: parameters, flags and modules are as before attaching. May be called twice."""

    def others(self) -> dict[str, Tensor]:
        """The model's parameters that are neither shared nor the adapter's, by their names now; detached."""
        own = {id(p) for p in (*self.shared.values(), *self.trainable)}
        return {name: p.detach() for name, p in self.problem.model.named_parameters() if id(p) not in own}

    @contextmanager
    def at(self, point: Mapping[str, Tensor]) -> Iterator[None]:
        """The model at ``point``, under the session's conditions.

        Args:
            point: tensors by the keys of ``parameters()``, or of other parameters of the model.
        """
        with self.conditions.around(), dense_embeddings(self.problem.model), placed(self.problem.model, point):
            yield

    def evaluate(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """The task losses at the adapted point, or at ``parameters``.

        With a process group they are means over the ranks, present where some rank has the task.

        Raises:
            InvalidInputError: the losses call ``backward()``, or the model recomputes by reentrant checkpoints.
        """
        self.forwards += 1
        group = self.conditions.group
        # A rank whose losses raise must not leave the others in the mean below.
        point = self.parameters() if parameters is None else parameters
        with together(group), self.at(point), self._refusing_backward():
            losses = self.problem.losses(batch)
            if torch.is_grad_enabled() and not self._graph_checked:
                refuse_reentrant(losses.outputs)
                self._graph_checked = True
        return losses if group is None else mean_losses(losses, group)

    @contextmanager
    def _refusing_backward(self) -> Iterator[None]:
        """Refuse losses that go by ``backward()`` through what led to the parameters, and so free it.

        Raises:
            InvalidInputError: they did.
        """
        held = [(tensor, tensor.grad) for tensor in self.trainable]
        for tensor, _ in held:
            tensor.grad = None
        try:
            yield
            met = any(tensor.grad is not None for tensor, _ in held)
        finally:
            for tensor, gradient in held:
                tensor.grad = gradient
        if met:
            raise InvalidInputError(
                "`losses` must differentiate by torch.autograd.grad(value, inputs) to be evaluated at a moved point, "
                "got some that call backward(), which goes on through the parameters to the adapter."
            )

    def evaluate_without_graph(self, batch: Any, *, parameters: Mapping[str, Tensor]) -> TaskLosses:
        """As ``evaluate``, where no gradient of the losses is wanted; losses that differentiate still may."""
        return without_graph(self.problem, lambda: self.evaluate(batch, parameters=parameters))

    def differentiate(
        self,
        output: Tensor,
        inputs: Sequence[Tensor],
        *,
        at: Mapping[str, Tensor],
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients of a scalar, zero where it does not depend on an input; no ``.grad`` is touched.

        Args:
            output: a scalar.
            inputs: tensors to differentiate by.
            at: the parameters at which it was evaluated: the model is placed there again, for what it recomputes.
            create_graph: whether the gradients are to be differentiated again.
            retain_graph: keep the graph; by default only where the gradients have one.
        """
        return self.differentiate_all((output,), inputs, at=at, create_graph=create_graph, retain_graph=retain_graph)

    def differentiate_all(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        at: Mapping[str, Tensor],
        seeds: Sequence[Tensor] | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> tuple[Tensor, ...]:
        r"""As ``differentiate``, of :math:`\sum_i \langle o_i, s_i\rangle`, with seeds of ones by default."""
        given = [torch.ones_like(output) for output in outputs] if seeds is None else seeds
        joined = [(output, seed) for output, seed in zip(outputs, given, strict=True) if output.requires_grad]
        return self._gradients(
            [output for output, _ in joined],
            [seed for _, seed in joined],
            inputs,
            at=at,
            create_graph=create_graph,
            retain_graph=create_graph if retain_graph is None else retain_graph,
        )

    def each_task_gradient(
        self,
        losses: TaskLosses,
        inputs: Sequence[Tensor],
        *,
        at: Mapping[str, Tensor],
        create_graph: bool = False,
        retain_graph: bool = False,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Gradients of each present task's loss, one after the other, so that none need be kept.

        No task's pass runs through the head of another. The graph is gone after the last.

        Args:
            losses: from ``evaluate``.
            inputs: tensors to differentiate by.
            at: the parameters at which the losses were evaluated.
            create_graph: whether the gradients are to be differentiated again.
            retain_graph: keep the graph beyond the last task.
        """
        # A scaled pass starts from the loss itself: the seed must have its dtype, which a graph edge does not carry.
        is_scaled = self.conditions.loss_scale != 1.0
        roots = roots_of(tuple(losses.values.unbind()) if is_scaled else losses.outputs)
        for k, root in enumerate(roots):
            keep = retain_graph or create_graph or k + 1 < len(roots)
            outputs, seeds = _start(root)
            yield self._gradients(outputs, seeds, inputs, at=at, create_graph=create_graph, retain_graph=keep)

    def _gradients(
        self,
        outputs: Sequence[Tensor | GradientEdge],
        seeds: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        *,
        at: Mapping[str, Tensor],
        create_graph: bool,
        retain_graph: bool,
    ) -> tuple[Tensor, ...]:
        self.backwards += 1
        self.seconds += create_graph
        scale, group = self.conditions.loss_scale, self.conditions.group
        # Also without an output, as for a task that other ranks have: all must agree before the sum below.
        with together(group):
            if not outputs:
                found = tuple(torch.zeros_like(tensor) for tensor in inputs)
            else:
                with self.at(at):
                    found = torch.autograd.grad(
                        outputs,  # type: ignore[arg-type]
                        inputs,
                        [seed if seed is None or scale == 1.0 else seed * scale for seed in seeds],
                        create_graph=create_graph,
                        retain_graph=retain_graph,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                # What is combined and projected later is dense; an embedding's gradient need not be.
                found = tuple(g.to_dense() if g.is_sparse else g for g in found)
                if scale != 1.0:
                    found = tuple(gradient / scale for gradient in found)
        return found if group is None else total(found, group)

    def merge(self, *, scale: float = 1.0) -> None:
        r"""Detach, then write :math:`\theta \leftarrow \theta + \text{scale}\cdot\Delta\theta` in place.

        Modules and Parameters stay the same Python objects, so optimiser state and references to them stay valid.
        """
        delta = check_displacement(self, self.shared, self.delta())
        self.detach()
        write_(self.shared, displaced(self.shared, delta, scale=scale))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


@runtime_checkable
class Adapter(Protocol):
    """Anything that can attach itself to the shared parameters of a problem as an exact no-op."""

    def attach(
        self, problem: Problem, *, batch: Any = None, generator: torch.Generator | None = None
    ) -> AdapterSession:
        """Open a session in which the adapted losses equal the problem's own.

        Args:
            problem: the problem whose shared parameters are to be moved.
            batch: a batch for adapters that check on data that they start as a no-op.
            generator: source of the initial values, on the CPU.

        Raises:
            NoMatchError: no shared parameter or layer can be adapted.
        """
        ...


def _start(root: Root) -> tuple[list[Tensor | GradientEdge], list[Tensor | None]]:
    """Where one task's backward pass starts, and with what."""
    if root is None:
        return [], []
    if isinstance(root, Joint):
        seed = torch.zeros_like(root.losses)
        seed[root.i] = 1.0
        return [root.losses], [seed]
    return [root], [torch.ones_like(root) if isinstance(root, Tensor) else None]


def displaced(shared: Mapping[str, Tensor], delta: Mapping[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
    r"""New tensors :math:`\theta + \text{scale}\cdot\Delta\theta` for the parameters that ``delta`` names; detached."""
    # Rounded once, after scaling: half precision would round a small displacement away before it is scaled.
    return {name: shared[name].detach() + (scale * step).to(shared[name].dtype) for name, step in delta.items()}


@torch.no_grad()
def write_(shared: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into the tensors of the same names, in place."""
    for name, value in values.items():
        shared[name].copy_(value)
    # Within one autocast region low-precision copies of parameters are kept, and would go on showing the old values.
    torch.clear_autocast_cache()
