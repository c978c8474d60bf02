"""What an estimate of the sharpness is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mtl_teleport.search_context import Search
from mtl_teleport.sharpness.point import Point

__all__ = ["Estimate", "Sharpness", "SharpnessKind", "Slopes"]

SharpnessKind = Literal["random", "ascent", "exact", "newton", "look-ahead", "flat"]
"""Names of what an adapter may climb: three estimates of the gradient norm, and three quantities of another kind."""


@dataclass(frozen=True)
class Estimate:
    r"""Sharpness at one point, for a search that follows one gradient.

    Attributes:
        gain: the sharpness :math:`L_g`, detached.
        gradient: gives :math:`\nabla_\varphi(\sum_i a_i L_i + b L_g)`, ``[p]``, for coefficients a ``[k]`` of the tasks
            present and a scalar b; to be called once at most, since the graph is gone afterwards.
    """

    gain: Tensor
    gradient: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Slopes:
    r"""Sharpness and losses at one point, each to first order in the adapter's tensors :math:`\varphi`.

    Attributes:
        gain: the sharpness :math:`L_g`, detached.
        directions: gives :math:`\nabla_\varphi L_g`, ``[p]``, and the rows :math:`\nabla_\varphi L_i`, ``[k, p]``; to
            be called once at most, and not at all if the point is left again.
        gramian: the Gramian ``[m, m]`` of the task gradients by the whole point, float64 on the CPU, where it fell out
            on the way.
    """

    gain: Tensor
    directions: Callable[[], tuple[Tensor, Tensor]]
    gramian: Tensor | None = None


class Sharpness(ABC):
    """What an adapter climbs: mostly an estimate of the gradient norm of the weighted loss."""

    is_random = False
    """Whether two evaluations at one point differ."""

    name: SharpnessKind
    """How ``COST`` calls it."""

    differentiates_twice = False
    """Whether every operation of the model must be twice differentiable."""

    is_judge = False
    """Whether a displacement is dropped by which it has not grown, in the mean over the probe batches."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """What it costs at most at a point, beyond the losses and each task's own gradient; see ``budget``."""

    def for_search(self, search: Search) -> Sharpness:
        """The estimate for one search; itself where it needs nothing of it."""
        return self

    @abstractmethod
    def estimate(self, point: Point) -> Estimate:
        """The sharpness at a point, and its gradient together with that of the losses."""

    @abstractmethod
    def slopes(self, point: Point) -> Slopes:
        """The sharpness at a point, and how it and each loss change with the adapter."""
