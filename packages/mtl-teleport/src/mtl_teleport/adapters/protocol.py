r"""What an adapter is: a way to move the shared parameters by a trainable :math:`\Delta\theta(\varphi)`.

``adapter.attach(problem)`` opens a session. The session holds the trainable tensors :math:`\varphi`, evaluates the
problem at :math:`\theta + \Delta\theta(\varphi)`, and ends either with ``merge()`` (the displacement is written into
the very same ``Parameter`` objects) or with ``detach()`` (as if nothing had happened).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mtl_core.collecting.graph import Joint, roots_of
from mtl_core.problem import Problem, TaskLosses
from mtl_teleport import ranks

__all__ = ["Adapter", "AdapterSession", "displaced", "write_"]


class AdapterSession(ABC):
    r"""A problem with an adapter attached; counts the passes it is used for.

    Attributes:
        problem: the problem that is adapted.
        shared: its shared parameters by their name *before* attaching, in the model's order.
        trainable: the adapter's tensors :math:`\varphi`, leaves that require a gradient.
        forwards: evaluations of the losses so far.
        backwards: differentiations of the losses so far.
        group: the process group over which losses are means, if any; set before the first evaluation.
        loss_scale: factor on a loss while it is differentiated, divided out of its gradients, as for a gradient
            scaler.
        holds_all_gradients: whether there is room for the gradients of all tasks at once.
        around: what each evaluation runs in.
    """

    has_free_point = False
    """Whether ``parameters()`` alone carry the adapter: a graph leads from them to ``trainable`` without the model."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.shared: dict[str, nn.Parameter] = dict(problem.named_shared)
        self.trainable: tuple[Tensor, ...] = ()
        self.forwards = 0
        self.backwards = 0
        self.group: dist.ProcessGroup | None = None
        self.loss_scale = 1.0
        self.holds_all_gradients = True
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """The tensors at which the losses are evaluated, one per shared parameter and in their order.

        Keys are names in the model as it is now, for ``problem.losses(batch, parameters=...)``. Every value may be
        differentiated with respect to, and a gradient through it reaches ``trainable``.
        """

    @abstractmethod
    def delta(self) -> dict[str, Tensor]:
        """The displacement of each adapted parameter, by its name before attaching; detached."""

    @abstractmethod
    def detach(self) -> None:
        """Take the adapter off: parameters, flags and modules are as before attaching. May be called twice."""

    def evaluate(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """The task losses at the adapted point, or at ``parameters`` (with the keys of ``parameters()``).

        With a process group they are means over the ranks, present where some rank has the task.
        """
        self.forwards += 1
        point = self.parameters() if parameters is None else parameters
        with self.around():
            losses = self.problem.losses(batch, parameters=point)
        return losses if self.group is None else ranks.mean_losses(losses, self.group)

    def differentiate(
        self,
        output: Tensor,
        inputs: Sequence[Tensor],
        *,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients of a scalar, zero where it does not depend on an input; no ``.grad`` is touched."""
        root = output if output.requires_grad else None
        return self._gradients(root, inputs, create_graph=create_graph, retain_graph=retain_graph)

    def differentiate_all(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        r"""Gradients of :math:`\sum_i \langle \text{outputs}_i, \text{seeds}_i\rangle`, zero where there is none.

        The graph is gone afterwards.
        """
        self.backwards += 1
        joined = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
        if not joined:
            return tuple(torch.zeros_like(tensor) for tensor in inputs)
        scale = self.loss_scale
        found = torch.autograd.grad(
            [output for output, _ in joined],
            inputs,
            [seed if scale == 1.0 else seed * scale for _, seed in joined],
            allow_unused=True,
            materialize_grads=True,
        )
        if scale != 1.0:
            found = tuple(gradient / scale for gradient in found)
        return found if self.group is None else ranks.total(found, self.group)

    def each_task_gradient(
        self, losses: TaskLosses, inputs: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
    ) -> Iterator[tuple[Tensor, ...]]:
        """Gradients of each present task's loss, one after the other, so that none need be kept.

        No task's pass runs through the head of another. The graph is gone after the last.

        Args:
            losses: from ``evaluate``.
            inputs: tensors to differentiate by.
            create_graph: whether the gradients are to be differentiated again.
            retain_graph: keep the graph beyond the last task.
        """
        # A scaled pass starts from the loss itself, since the seed must have its dtype, which an edge does not tell.
        roots = roots_of(losses.outputs if self.loss_scale == 1.0 else tuple(losses.values.unbind()))
        for k, root in enumerate(roots):
            keep = retain_graph or create_graph or k + 1 < len(roots)
            yield self._gradients(root, inputs, create_graph=create_graph, retain_graph=keep)

    def differentiate_tasks(
        self, losses: TaskLosses, inputs: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
    ) -> list[tuple[Tensor, ...]]:
        """All of ``each_task_gradient`` at once."""
        return list(self.each_task_gradient(losses, inputs, create_graph=create_graph, retain_graph=retain_graph))

    def _gradients(
        self,
        root: Tensor | GradientEdge | Joint | None,
        inputs: Sequence[Tensor],
        *,
        create_graph: bool,
        retain_graph: bool | None,
    ) -> tuple[Tensor, ...]:
        self.backwards += 1
        if root is None:
            found = tuple(torch.zeros_like(tensor) for tensor in inputs)
        else:
            seed: Tensor | None = None
            if isinstance(root, Joint):
                seed = torch.zeros_like(root.losses)
                seed[root.i] = 1.0
            elif isinstance(root, Tensor) and self.loss_scale != 1.0:
                seed = torch.full_like(root, self.loss_scale)
            start: Tensor | GradientEdge = root.losses if isinstance(root, Joint) else root
            found = torch.autograd.grad(
                start,
                inputs,
                seed,
                create_graph=create_graph,
                retain_graph=create_graph if retain_graph is None else retain_graph,
                allow_unused=True,
                materialize_grads=True,
            )
            if self.loss_scale != 1.0:
                found = tuple(gradient / self.loss_scale for gradient in found)
        return found if self.group is None else ranks.total(found, self.group)

    def merge(self, *, scale: float = 1.0) -> None:
        r"""Detach, then write :math:`\theta \leftarrow \theta + \text{scale}\cdot\Delta\theta` in place.

        Modules and Parameters stay the same Python objects, so optimiser state and references to them stay valid.
        """
        delta = self.delta()
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


def displaced(shared: Mapping[str, Tensor], delta: Mapping[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
    r"""New tensors :math:`\theta + \text{scale}\cdot\Delta\theta` for the parameters that ``delta`` names; detached."""
    return {name: shared[name].detach() + (scale * step).to(shared[name].dtype) for name, step in delta.items()}


@torch.no_grad()
def write_(shared: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into the tensors of the same names, in place."""
    for name, value in values.items():
        shared[name].copy_(value)
    # Within one autocast region low-precision copies of parameters are kept, and would go on showing the old values.
    torch.clear_autocast_cache()
