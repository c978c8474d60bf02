r"""The point of least norm in the convex hull of the gradients."""

from __future__ import annotations

import numpy as np

from mtl_aggregators.solvers.rows import factor, non_negative_least_squares, unit_rows
from mtl_aggregators.solvers.solution import Solution, Vector
from mtl_core import SolverError

__all__ = ["min_norm", "min_norm_residual"]

TOLERANCE = 1e-10
"""Largest residual of a returned solution."""


def min_norm(gramian: Vector) -> Solution:
    r"""Weights of the min-norm point, :math:`\min_{w\in\Delta} w^\top G w`.

    With :math:`z_i = w_i\|g_i\|` the rows have unit length and the simplex becomes :math:`\sum_i z_i/\|g_i\| = 1`. Up
    to scale the minimiser is that of :math:`\|R z\|^2 + (\sum_i z_i/\|g_i\| - 1)^2` over :math:`z \ge 0` with
    :math:`R^\top R` the cosines: one non-negative least-squares problem, bounded even if zero lies in the hull. Two
    tasks have a closed form.

    Args:
        gramian: ``[m, m]``, float64, finite.

    Returns:
        weights ``[m]`` in the simplex, 0 for zero rows (uniform if all are zero); the residual is that of
        ``min_norm_residual``.

    Raises:
        SolverError: the active-set iteration did not end, or its result is not optimal to 1e-10.

    References:
        Désidéri, *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*, C. R. Math. 2012;
        Lawson and Hanson, *Solving Least Squares Problems*, SIAM 1995, chapter 23.

    Example:
        >>> min_norm(np.array([[4.0, 0.0], [0.0, 1.0]])).value.tolist()
        [0.2, 0.8]
    """
    rows = unit_rows(gramian)
    k = len(rows.norms)
    if k == 0:
        return Solution(np.full(rows.size, 1.0 / rows.size), 0.0, 0)
    if k == 1:
        return Solution(rows.expand(np.ones(1)), 0.0, 0)
    if k == 2:
        weights = _two(rows.cosines.item(0, 1), rows.norms.item(0), rows.norms.item(1))
        iterations = 0
    else:
        # 1/‖g_i‖ relative to the largest of them, so that the constraint's row has entries of at most 1, as the
        # factor's columns have.
        inverse = rows.norms.min() / rows.norms
        # Least squares on the factor instead of the normal equations, which would square its condition number.
        root = factor(rows.cosines)
        system = np.empty((root.shape[0] + 1, k))
        system[:-1] = root
        system[-1] = inverse
        target = np.zeros(system.shape[0])
        target[-1] = 1.0
        solution = non_negative_least_squares(system, target)
        if solution is None:
            raise SolverError("the min-norm point was not found", residual=float("inf"), iterations=1)
        weights = solution * inverse
        weights /= weights.sum()
        iterations = 1
    residual = _residual(rows.cosines, rows.norms, weights)
    if not residual <= TOLERANCE:
        raise SolverError("the min-norm point is not optimal", residual=residual, iterations=iterations)
    return Solution(rows.expand(weights), residual, iterations)


def min_norm_residual(gramian: Vector, weights: Vector) -> float:
    r"""How far weights are from the min-norm point.

    :math:`\max(0, w^\top G w - \min_i (Gw)_i) \cdot m / \operatorname{tr} G`, zero rows left out.

    Args:
        gramian: ``[m, m]``.
        weights: ``[m]`` in the simplex.
    """
    rows = unit_rows(gramian)
    if not len(rows.norms):
        return 0.0
    return _residual(rows.cosines, rows.norms, weights if rows.kept is None else weights[rows.kept])


def _residual(cosines: Vector, norms: Vector, weights: Vector) -> float:
    # Norms relative to the largest, so that tr G cannot overflow; the ratio below is free of scale.
    image = (cosines @ (weights * norms)) * norms
    gap = float(weights @ image) - float(image.min())
    return max(0.0, gap) * len(norms) / float(norms @ norms)


def _two(cosine: float, first: float, second: float) -> Vector:
    """Closed form for two tasks: the foot of the perpendicular from the origin to the segment, within the segment."""
    # ‖g_1 − g_2‖², written so that it does not cancel for nearly equal norms.
    distance = (first - second) ** 2 + 2.0 * first * second * (1.0 - cosine)
    share = second * (second - first * cosine) / distance if distance > 0.0 else 0.5
    share = min(1.0, max(0.0, share))
    return np.array([share, 1.0 - share])
