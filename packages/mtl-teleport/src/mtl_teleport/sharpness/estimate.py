"""What an estimate of the sharpness is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mtl_teleport.sharpness.point import Point

__all__ = ["Estimate", "Sharpness", "SharpnessKind", "Slopes"]

SharpnessKind = Literal["random", "ascent", "exact"]
"""Names of the three estimates."""


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
    """An estimate of the gradient norm of the weighted loss, as a term to be maximised."""

    is_random = False
    """Whether two evaluations at one point differ."""

    @abstractmethod
    def estimate(self, point: Point) -> Estimate:
        """The sharpness at a point, and its gradient together with that of the losses."""

    @abstractmethod
    def slopes(self, point: Point) -> Slopes:
        """The sharpness at a point, and how it and each loss change with the adapter."""
