"""What the training of an adapter works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.budget import gradients_passes
from mtl_teleport.objective import Objective
from mtl_teleport.search_context import Search, task_gramian

__all__ = ["Climb", "Limits", "PathPoint", "SearchEnd", "mean_gain", "place_"]

SearchEnd = Literal["aim", "steps", "budget", "no direction"]
"""Why a search ended: its aim is reached, its steps or passes are used up, or the losses allow no direction."""


@dataclass(frozen=True)
class Limits:
    """How far and how long a search may go.

    Attributes:
        lr: length of a step: the root mean square change of an entry of the adapter's tensors, as in a step of Adam.
        max_steps: number of steps at most.
        max_drift: mean relative drift of the losses that will be accepted in the end, or ``None``.
        max_passes: what the session may be used for in passes, one of them for a last look; ``None`` for any number.
        step_passes: what a step takes of them at most.
        stride: factor on the first step's length in a projected search.
    """

    lr: float
    max_steps: int
    max_drift: float | None
    max_passes: int | None = None
    step_passes: int = 0
    stride: float = 1.0


@dataclass(frozen=True)
class PathPoint:
    """A point that a search looked at.

    Attributes:
        losses: the losses ``[m]`` on that turn's batch.
        growth: of the sharpness; NaN where only the losses were looked at.
        change: mean absolute change of the losses against those held on that batch.
    """

    losses: tuple[float, ...]
    growth: float
    change: float


@dataclass(frozen=True)
class Climb:
    """The training of one adapter, and the path it takes.

    Attributes:
        session: the adapter, a no-op at first.
        objective: sharpness, weights and units.
        search: what there is to go by.
        held: the losses to hold, one ``[m]`` per probe batch of the search.
        limits: how far and how long.
        generator: for random sharpness, on the parameters' device.
        path: filled by the search, with every point that it looked at.
        ends: filled by the search, with the reason for which it ended.
    """

    session: AdapterSession
    objective: Objective
    search: Search
    held: Sequence[Tensor]
    limits: Limits
    generator: torch.Generator
    path: list[PathPoint] = field(default_factory=list)
    ends: list[SearchEnd] = field(default_factory=list)

    @property
    def is_bounded(self) -> bool:
        """Whether passes are limited."""
        return self.limits.max_passes is not None

    def affords(self, amount: int) -> bool:
        """Whether so many passes may be made, and a last look at the losses after them."""
        return self.limits.max_passes is None or self.session.passes + amount + 1 <= self.limits.max_passes

    def record(self, losses: Tensor, growth: float, held: Tensor) -> None:
        """Add a point to the path.

        Args:
            losses: there, ``[m]``, NaN where a task is absent.
            growth: of the sharpness, NaN where it was not looked at.
            held: the losses to hold on the same batch.
        """
        change = float((losses.to(torch.float64) - held.to(torch.float64)).abs().nanmean())
        self.path.append(PathPoint(tuple(losses.tolist()), growth, change))

    @property
    def gramian_passes(self) -> int:
        """What ``gramian`` takes."""
        view = self.search.view
        return (1 if view is None else len(view.parts)) * gradients_passes(self.search.problem.n_tasks)

    def gramian(self) -> Tensor:
        """The Gramian of the task gradients at the present point, as the step would see it."""
        view = self.search.view
        return task_gramian(self.session, self.search.batches[0]) if view is None else view.gramian(self.session)


def mean_gain(climb: Climb) -> float:
    """What is climbed, at the present point, in the mean over the probe batches."""
    session, batches = climb.session, climb.search.batches
    points = (climb.objective.point(session, batch, generator=climb.generator) for batch in batches)
    return sum(float(climb.objective.gain(point)) for point in points) / len(batches)


@torch.no_grad()
def place_(tensors: Sequence[Tensor], values: Tensor) -> None:
    """Write one vector into tensors, part by part."""
    for tensor, part in zip(tensors, torch.split(values, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
