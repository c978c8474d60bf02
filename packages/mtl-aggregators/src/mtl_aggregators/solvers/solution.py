"""What a solver gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Solution", "TellsSolution", "Vector"]

Vector = NDArray[np.float64]
"""A float64 array; the shape is in the docstring of whatever takes or returns it."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution and how it was reached.

    Attributes:
        value: the solution, float64.
        residual: how far the optimality conditions are from holding; each solver states its measure.
        iterations: inner problems or Newton steps; 0 for a closed form.
        regularised: whether the problem was changed by a ridge because it has no solution as it stands.
    """

    value: Vector
    residual: float
    iterations: int
    regularised: bool = False


@runtime_checkable
class TellsSolution(Protocol):
    """A method that tells how its last weights were found; optional, as the protocols of ``mtl_core.extension``."""

    @property
    def last_solution(self) -> Solution:
        """The solution; ``None``, which counts as not offered, where none was needed."""
