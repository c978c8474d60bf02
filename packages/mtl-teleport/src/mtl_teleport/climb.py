"""What the training of an adapter works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.objective import Objective
from mtl_teleport.search_context import Search, task_gramian

__all__ = ["Climb", "Limits", "PathPoint", "mean_gain", "place_"]


@dataclass(frozen=True)
class Limits:
    """How far and how long a search may go.

    Attributes:
        lr: length of a step: the root mean square change of an entry of the adapter's tensors, as in a step of Adam.
        max_steps: number of steps at most.
        max_drift: mean relative drift of the losses that will be accepted in the end, or ``None``.
    """

    lr: float
    max_steps: int
    max_drift: float | None


@dataclass(frozen=True)
class PathPoint:
    """A point that a search looked at.

    Attributes:
        losses: the losses ``[m]`` on that turn's batch.
        growth: of the sharpness; NaN where the point was left for its drift alone.
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
    """

    session: AdapterSession
    objective: Objective
    search: Search
    held: Sequence[Tensor]
    limits: Limits
    generator: torch.Generator
    path: list[PathPoint] = field(default_factory=list)

    def record(self, losses: Tensor, growth: float, held: Tensor) -> None:
        """Add a point to the path.

        Args:
            losses: there, ``[m]``, NaN where a task is absent.
            growth: of the sharpness, NaN where it was not looked at.
            held: the losses to hold on the same batch.
        """
        change = float((losses.to(torch.float64) - held.to(torch.float64)).abs().nanmean())
        self.path.append(PathPoint(tuple(losses.tolist()), growth, change))

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
