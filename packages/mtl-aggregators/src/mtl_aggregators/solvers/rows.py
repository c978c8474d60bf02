"""Rows scaled to unit length: what makes the solvers independent of gradient norms."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf

from mtl_aggregators.solvers.solution import Vector

__all__ = ["EPS", "UnitRows", "factor", "non_negative_least_squares", "ones", "unit_rows"]

EPS = float(np.finfo(np.float64).eps)
RESOLUTION = 16.0 * EPS
"""Squared distance, per task, to which unit gradients can be told apart.

The cosines themselves are rounded, so smaller distances are noise.
"""


class UnitRows(NamedTuple):
    """A Gramian taken apart into cosines and norms, without its zero rows.

    Attributes:
        cosines: ``[k, k]``, unit diagonal.
        norms: ``[k]``, positive, relative to ``scale``: the largest is 1.
        scale: the largest gradient norm.
        kept: positions of the ``k`` rows among the ``m`` tasks, or ``None`` if no row is zero.
        size: the number ``m`` of tasks.
    """

    cosines: Vector
    norms: Vector
    scale: float
    kept: NDArray[np.intp] | None
    size: int

    def expand(self, values: Vector) -> Vector:
        """``values`` ``[k]`` at the positions of their rows in ``[m]``, zero elsewhere."""
        if self.kept is None:
            return values
        full = np.zeros(self.size)
        full[self.kept] = values
        return full


def unit_rows(gramian: Vector) -> UnitRows:
    """Scale a Gramian's rows to unit length and leave out the zero ones.

    Args:
        gramian: ``[m, m]``, symmetric, float64, finite.

    Returns:
        its cosines and norms.

    Example:
        >>> rows = unit_rows(np.array([[4.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]))
        >>> rows.cosines.tolist(), rows.norms.tolist(), rows.scale
        ([[1.0, 0.5], [0.5, 1.0]], [1.0, 0.5], 2.0)
        >>> rows.expand(np.array([7.0, 8.0])).tolist()
        [7.0, 0.0, 8.0]
    """
    size = gramian.shape[0]
    squares = gramian.diagonal()
    index: NDArray[np.intp] | None = None
    # Lists of so few numbers are searched in a third of the time that arrays take.
    if min(squares.tolist()) <= 0.0:
        index = np.flatnonzero(squares > 0.0)
        squares = squares[index]
        gramian = gramian[index][:, index]
        if not len(index):
            return UnitRows(np.zeros((0, 0)), np.zeros(0), 0.0, index, size)
    norms = np.sqrt(squares)
    # Dividing by one norm at a time keeps tiny gradients from underflowing.
    cosines = gramian / norms
    cosines /= norms[:, None]
    # Exactly: the division leaves 1 ± 2e-16.
    cosines.ravel()[:: len(norms) + 1] = 1.0
    scale = max(norms.tolist())
    return UnitRows(cosines, norms / scale, scale, index, size)


@lru_cache(maxsize=64)
def ones(size: int) -> Vector:
    """A vector ``[size]`` of ones that is not to be written to."""
    vector = np.ones(size)
    vector.flags.writeable = False
    return vector


def factor(cosines: Vector) -> Vector:
    """A matrix ``R`` ``[r, k]`` with ``RᵀR = cosines`` up to rounding; column ``i`` is task ``i``'s unit gradient.

    The Cholesky factor of the cosines plus their own rounding on the diagonal. That changes nothing to the accuracy at
    which they are known, and makes duplicated, opposite and dependent rows need no treatment of their own: no
    solution then rests on coefficients above 1e8 that cancel each other.

    Args:
        cosines: ``[k, k]``, positive semi-definite up to rounding, unit diagonal.
    """
    k = len(cosines)
    lifted = cosines.copy()
    lifted.ravel()[:: k + 1] += RESOLUTION * k
    root, info = dpotrf(lifted, overwrite_a=1)
    if info != 0:
        # A Gramian summed in less than double precision: drop what is negative.
        values, vectors = np.linalg.eigh(cosines)
        root = np.sqrt(np.maximum(values, RESOLUTION * k))[:, None] * vectors.T
    upper: Vector = root
    return upper


def non_negative_least_squares(matrix: Vector, target: Vector) -> Vector | None:
    """``argmin_{x ≥ 0} ‖matrix x − target‖``, or ``None`` if the active-set iteration does not end."""
    from scipy.optimize import nnls  # loading it takes as long as all of this package, and few methods come here

    try:
        # Above scipy's own limit of three times the columns, which costs nothing where it is not reached, while an
        # iteration that is cut short is an error to the user.
        solution: Vector = nnls(matrix, target, maxiter=max(60, 10 * matrix.shape[1]))[0]
    except RuntimeError:
        return None
    return solution
