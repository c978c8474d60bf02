r"""Projection onto the cone of directions that no task objects to."""

from __future__ import annotations

import math

import numpy as np

from mtl_aggregators.solvers.pivoting import nonnegative_quadratics
from mtl_aggregators.solvers.rows import EPS, factor, non_negative_least_squares, unit_rows
from mtl_aggregators.solvers.solution import Solution, Vector
from mtl_core import SolverError

__all__ = ["project", "project_rows"]

TOLERANCE = 1e-8
"""Largest residual of a returned solution, beyond the rounding of its coefficients."""
PRECISE = 1e-12
"""Largest residual at which what principal pivoting found is kept."""
MANY = 32
"""Number of tasks from which projecting all gradients together is faster than one after another."""
NEAR = 1e-3
"""Distance of a unit gradient from the span of those before it below which normal equations lose too much.

A few such gradients, as where one is duplicated, do no harm; with many of them pivoting goes round in circles.
"""


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
    # The projection scales with what is projected. At length 1 the residual is relative to the terms, as promised.
    start = start / length
    # Least squares on the factor, not on the cosines: forming the normal equations squares the condition number.
    root = factor(cosines)
    target = root @ start
    added = _nearest(root, target)
    slack = (target + root @ added) @ root
    total = 1.0 + float(added.sum())
    residual = max(0.0, -float(slack.min()), abs(float(added @ slack)) / total)
    if not residual <= TOLERANCE + 16.0 * EPS * total:
        raise SolverError("the projection onto the dual cone is not optimal", residual=residual, iterations=1)
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
    conflicting = np.empty(0, dtype=np.intp)
    # Of two gradients, each is relieved of its conflict with the other: nothing to solve.
    if k == 2:
        added[0, 1] = added[1, 0] = max(0.0, -rows.cosines.item(0, 1)) / (1.0 + ridge)
    elif k > 2:
        cosines = _with_ridge(rows.cosines, ridge)
        # A gradient that conflicts with none lies in the cone already.
        conflicting = np.flatnonzero(cosines.min(axis=1) < 0.0)
        if len(conflicting):
            root = factor(cosines)
            starts = np.zeros((len(conflicting), k))
            starts[np.arange(len(conflicting)), conflicting] = 1.0
            found, worst = _project(root, starts, cosines if k >= MANY else None)
            added[conflicting] = found
    # In terms of the gradients themselves, u_i + Σ_j x_ij u_j becomes g_i + Σ_j (‖g_i‖/‖g_j‖) x_ij g_j.
    added *= rows.norms[:, None]
    added /= rows.norms
    if rows.kept is None:
        value = added
    else:
        value = np.zeros((rows.size, rows.size))
        value[np.ix_(rows.kept, rows.kept)] = added
    # u_i itself, with coefficient 1 on the diagonal. A zero row keeps it: the projection of zero is zero.
    value.ravel()[:: rows.size + 1] += 1.0
    return Solution(value, worst, len(conflicting))


def _with_ridge(cosines: Vector, ridge: float) -> Vector:
    return cosines + ridge * np.eye(len(cosines)) if ridge else cosines


def _project(root: Vector, starts: Vector, cosines: Vector | None = None) -> tuple[Vector, float]:
    """For each ``s`` the ``x ≥ 0`` that minimises ``‖R (s + x)‖``, and the largest residual.

    Args:
        root: ``R`` ``[r, k]``.
        starts: ``[n, k]``, ``Σ|s_i| = 1`` in each row.
        cosines: ``RᵀR``, to try all rows together first.
    """
    added = np.full(starts.shape, np.nan)
    # The factor's diagonal holds the distances from the span of the rows before.
    if cosines is not None and np.count_nonzero(root.diagonal() < NEAR) <= len(root) // 8:
        added = nonnegative_quadratics(cosines, starts @ cosines)
        off = _residuals(root, starts, added)
        # Rows that pivoting did not solve to 1e-12, or not at all (NaN), are solved one by one below.
        added[~(off <= PRECISE)] = np.nan
    targets = starts @ root.T
    for i in np.flatnonzero(np.isnan(added[:, 0])):
        added[i] = _nearest(root, targets[i])
    off = _residuals(root, starts, added)
    # Next to a stationary point x is so large that its own rounding shows.
    bad = ~(off <= TOLERANCE + 16.0 * EPS * (1.0 + added.sum(axis=1)))
    worst = float(off.max())
    if bad.any():
        raise SolverError("the projection onto the dual cone is not optimal", residual=worst, iterations=len(starts))
    return added, worst


def _nearest(root: Vector, target: Vector) -> Vector:
    """The ``x ≥ 0`` that minimises ``‖R x + target‖``."""
    found = non_negative_least_squares(root, -target)
    if found is None:
        raise SolverError("the projection onto the dual cone was not found", residual=math.inf, iterations=1)
    return found


def _residuals(root: Vector, starts: Vector, added: Vector) -> Vector:
    """How far each of ``n`` projections is from optimal, ``[n]``."""
    # By way of the factor: forming the slack from the cosines would lose what large x cancel.
    slack = ((starts + added) @ root.T) @ root
    total = 1.0 + added.sum(axis=1)
    complementarity = np.abs((added * slack).sum(axis=1)) / total
    residuals: Vector = np.maximum(complementarity, -np.minimum(slack.min(axis=1), 0.0))
    return residuals
