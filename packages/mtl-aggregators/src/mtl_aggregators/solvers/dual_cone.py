r"""Projection onto the cone of directions that no task objects to."""

from __future__ import annotations

import math

import numpy as np

from mtl_aggregators.solvers.rows import EPS, factor, non_negative_least_squares, unit_rows
from mtl_aggregators.solvers.solution import Solution, Vector
from mtl_core.errors import SolverError

__all__ = ["project", "project_rows"]

TOLERANCE = 1e-8
"""Largest residual of a returned solution, beyond the rounding of its coefficients."""


def project(gramian: Vector, coefficients: Vector, *, ridge: float = 0.0) -> Solution:
    r"""Projection of one combination :math:`J^\top u` onto the dual cone :math:`\{x : Jx \ge 0\}`.

    The projection is :math:`J^\top v` with :math:`v = \arg\min_{v \ge u} v^\top G v`. On unit rows, :math:`x = v - u`
    solves one non-negative least-squares problem.

    Args:
        gramian: ``[m, m]``, float64, finite.
        coefficients: ``u`` ``[m]``.
        ridge: added to the diagonal of the cosines; 0 is the exact projection.

    Returns:
        ``v`` ``[m]``. The residual is the larger of dual infeasibility, :math:`\max_i -\langle u_i, J^\top v\rangle`
        over unit gradients, and complementarity, relative to :math:`\sum_i |u_i|\|g_i\|`.

    Raises:
        SolverError: the residual is above 1e-8, beyond rounding.

    Example:
        >>> project(np.array([[1.0, -1.0], [-1.0, 2.0]]), np.array([1.0, 0.0])).value.tolist()
        [1.0, 0.5]
    """
    rows = unit_rows(gramian)
    if not len(rows.norms):
        return Solution(coefficients.copy(), 0.0, 0)
    cosines = _with_ridge(rows.cosines, ridge)
    start = (coefficients if rows.kept is None else coefficients[rows.kept]) * rows.norms
    length = float(np.abs(start).sum())
    if length == 0.0:
        return Solution(coefficients.copy(), 0.0, 0)
    added, residual = _project(factor(cosines), start / length)
    return Solution(coefficients + rows.expand(added * length / rows.norms), residual, 1)


def project_rows(gramian: Vector, *, ridge: float = 0.0) -> Solution:
    r"""Projection of every gradient onto the dual cone.

    Row ``i`` of the result is :math:`\arg\min_{v \ge e_i} v^\top G v`.

    Args:
        gramian: ``[m, m]``, float64, finite.
        ridge: added to the diagonal of the cosines; 0 is the exact projection.

    Returns:
        ``V`` ``[m, m]``, such that row ``i`` of ``V J`` is the projection of ``g_i``; the residual is the worst
        row's.

    Raises:
        SolverError: the residual of a row is above 1e-8, beyond rounding.

    Example:
        >>> project_rows(np.array([[1.0, -1.0], [-1.0, 2.0]])).value.tolist()
        [[1.0, 0.5], [1.0, 1.0]]
    """
    rows = unit_rows(gramian)
    k = len(rows.norms)
    added = np.zeros((k, k))
    worst = 0.0
    solves = 0
    if k == 2:
        added[0, 1] = added[1, 0] = max(0.0, -rows.cosines.item(0, 1)) / (1.0 + ridge)
    elif k > 2:
        cosines = _with_ridge(rows.cosines, ridge)
        conflicting = np.flatnonzero(cosines.min(axis=1) < 0.0)
        if len(conflicting):
            root = factor(cosines)
            for i in conflicting:
                added[i], residual = _project(root, i)
                worst = max(worst, residual)
                solves += 1
    # In terms of the gradients themselves, u_i + Σ_j x_ij u_j becomes g_i + Σ_j (‖g_i‖/‖g_j‖) x_ij g_j.
    added *= rows.norms[:, None]
    added /= rows.norms
    if rows.kept is None:
        value = added
    else:
        value = np.zeros((rows.size, rows.size))
        value[np.ix_(rows.kept, rows.kept)] = added
    value.ravel()[:: rows.size + 1] += 1.0
    return Solution(value, worst, solves)


def _with_ridge(cosines: Vector, ridge: float) -> Vector:
    return cosines + ridge * np.eye(len(cosines)) if ridge else cosines


def _project(root: Vector, start: Vector | np.intp) -> tuple[Vector, float]:
    """The ``x ≥ 0`` that minimises ``‖R (s + x)‖``, and its residual; ``s`` has ``Σ|s_i| = 1`` or is one task."""
    target = root @ start if isinstance(start, np.ndarray) else root[:, start]
    added = non_negative_least_squares(root, -target)
    if added is None:
        raise SolverError("the projection onto the dual cone was not found", residual=math.inf, iterations=1)
    image = root @ added
    # By way of the factor: forming the slack from the cosines would lose what large x cancel.
    slack = (image + target) @ root
    total = 1.0 + float(added.sum())
    residual = max(0.0, -float(slack.min()), abs(float(added @ slack)) / total)
    # Next to a stationary point x is so large that its own rounding shows.
    if not residual <= TOLERANCE + 16.0 * EPS * total:
        raise SolverError("the projection onto the dual cone is not optimal", residual=residual, iterations=1)
    return added, residual
