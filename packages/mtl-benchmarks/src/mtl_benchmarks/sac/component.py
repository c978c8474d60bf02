"""A part of the agent that has an optimiser of its own, trained on the losses of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mtl_aggregators import ThreeBatches
from mtl_benchmarks.sac.protocol import SACProtocol
from mtl_core import Method, Problem, StepReport, collect_per_task, step
from mtl_core.extension import CountsEpochs, Remembers, TakesSeveralBatches, finish, is_loss_weighting, offers

__all__ = ["Component", "Parts", "Samples"]

Samples = tuple[Tensor, ...]
"""What a loss is computed from, sample by sample: each tensor has a row for each."""

_THREE = len(ThreeBatches._fields)

Parts = Mapping[str, Samples]
"""Task → its samples, of the tasks that are there."""


class Component:
    """A network with its optimiser, and the method that trains it.

    Args:
        model: the network; all tasks share all of it.
        values: ``values(model, samples)``, the loss of each sample ``[n]``.
        tasks: the tasks' names.
        method: what makes one update of the tasks' gradients or losses.
        protocol: rate, and how gradients are taken.
    """

    def __init__(
        self,
        model: nn.Module,
        values: Callable[[nn.Module, Samples], Tensor],
        tasks: Sequence[str],
        method: Any,
        protocol: SACProtocol,
    ) -> None:
        self.model = model
        self.method = method
        self._values = values
        self._vmap = protocol.grouping == "vmap"
        self.optimizer = torch.optim.Adam(model.parameters(), lr=protocol.lr)
        self.problem = Problem(model, self._losses, shared=model, tasks=tasks)

    @property
    def is_on_gradients(self) -> bool:
        """Whether the method looks at the tasks' gradients, of one batch or of several."""
        return self._takes_several or not (is_loss_weighting(self.method) or offers(self.method, Method))

    @property
    def _takes_several(self) -> bool:
        return offers(self.method, TakesSeveralBatches)

    def start_epoch(self, number: int) -> None:
        """Tell the method, if it counts them."""
        if offers(self.method, CountsEpochs):
            self.method.start_epoch(number)

    def step(self, parts: Parts) -> StepReport:
        """One update by the samples of each task.

        Of a method that takes three batches each gets a third of a task's samples, which are drawn independently, or
        all of them where there are fewer than three.
        """
        if self._takes_several:
            return step(self.problem, _thirds(parts), self.optimizer, self.method)
        # vmap takes one batch per task and no absent one; a small batch may lack one.
        if not (self._vmap and self.is_on_gradients and len(parts) == len(self.problem.tasks)):
            return step(self.problem, parts, self.optimizer, self.method)
        self.optimizer.zero_grad(set_to_none=True)
        gradients = collect_per_task(self.model, self._padded_loss, _padded(parts), tasks=self.problem.tasks)
        return finish(self.problem, parts, self.optimizer, self.method, gradients)

    def _losses(self, model: nn.Module, parts: Parts) -> dict[str, Tensor]:
        return {task: self._values(model, part).mean() for task, part in parts.items()}

    def _padded_loss(self, model: nn.Module, part: Samples) -> Tensor:
        *samples, weights = part
        return (self._values(model, tuple(samples)) * weights).sum()

    def state_dict(self) -> dict[str, Any]:
        """Parameters, the optimiser's memory and the method's."""
        remembers = offers(self.method, Remembers)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if remembers else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["method"] is not None:
            self.method.load_state_dict(state["method"])


def _thirds(parts: Parts) -> ThreeBatches:
    def third(part: Samples, k: int) -> Samples:
        # Fewer samples than batches are in each of them: a task that comes and goes is none to such methods.
        return tuple(value[k::_THREE] for value in part) if len(part[0]) >= _THREE else part

    return ThreeBatches(*({task: third(part, k) for task, part in parts.items()} for k in range(_THREE)))


def _padded(parts: Parts) -> list[Samples]:
    """Each task's samples with zeros behind them up to the most of any, and the weights of their mean."""
    longest = max(len(part[0]) for part in parts.values())
    found = []
    for part in parts.values():
        n = len(part[0])
        # With weight 0 behind them, the sum over the padded samples is the mean over a task's own.
        weights = part[0].new_full((n,), 1 / n)
        found.append(tuple(pad(value, (0, 0) * (value.ndim - 1) + (0, longest - n)) for value in (*part, weights)))
    return found
