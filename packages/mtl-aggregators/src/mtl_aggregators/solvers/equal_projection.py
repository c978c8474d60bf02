r"""The combination that has the same projection on every unit gradient."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dposv, dpotrs

from mtl_aggregators.solvers.rows import RESOLUTION, UnitRows, unit_rows
from mtl_aggregators.solvers.solution import Solution, Vector

__all__ = ["equal_projection", "equal_shares"]

CUTOFF = 4.0 * RESOLUTION
"""Eigenvalue of the cosines, per task, below which a direction is taken for linearly dependent."""
WELL_POSED = 1e-3
"""Distance of a unit gradient from the span of those before it that makes elimination accurate."""


def equal_projection(gramian: Vector, targets: Vector | None = None) -> Solution:
    r"""Coefficients of :math:`x = \sum_i z_i u_i` with :math:`\langle u_i, x\rangle = t_i` for all unit gradients.

    Least squares of least norm, :math:`z = C^+ t` with :math:`C` the cosines. If zero lies in the affine hull of the
    unit gradients, no :math:`x` has all the projections; the result then gets as near as it can.

    Args:
        gramian: ``[m, m]``, float64, finite.
        targets: ``t`` ``[m]``; ``None`` for ones.

    Returns:
        ``z`` ``[m]``, 0 for zero rows. The residual is :math:`\max_i |\langle u_i, x\rangle - t_i| / \max_i |t_i|`; it
        is 0 up to rounding if the projections can be had. ``regularised`` says that they cannot.

    Example:
        >>> equal_projection(np.array([[4.0, 0.0], [0.0, 1.0]])).value.tolist()
        [1.0, 1.0]
    """
    rows = unit_rows(gramian)
    k = len(rows.norms)
    if k == 0:
        return Solution(np.zeros(rows.size), 0.0, 0)
    wanted = np.ones(k) if targets is None else (targets if rows.kept is None else targets[rows.kept])
    size = float(np.abs(wanted).max())
    if size == 0.0:
        return Solution(np.zeros(rows.size), 0.0, 0)
    solution, missing = equal_shares(rows, wanted)
    residual = float(np.abs(rows.cosines @ solution - wanted).max()) / size
    return Solution(rows.expand(solution), residual, 0, missing)


def equal_shares(rows: UnitRows, wanted: Vector) -> tuple[Vector, bool]:
    """``z`` ``[k]`` with ``C z = t`` on unit rows, and whether there is none, so that it is the nearest one."""
    # The two of them by Cramer's rule. 1 − c² as a product, which does not cancel near c = 1.
    if len(wanted) == 2:
        cosine = rows.cosines.item(1)
        apart = (1.0 - cosine) * (1.0 + cosine)
        if apart > WELL_POSED**2:
            return (wanted - cosine * wanted[::-1]) / apart, False
    # Elimination takes a twentieth of an eigen-decomposition's time or less. With one step of iterative refinement it
    # is as accurate where the rows are well apart, which the factor's diagonal tells.
    root, exact, info = dposv(rows.cosines, wanted)
    if info == 0 and min(root.diagonal().tolist()) > WELL_POSED:
        exact += dpotrs(root, wanted - rows.cosines.dot(exact))[0]
        return exact, False
    values, vectors = np.linalg.eigh(rows.cosines)
    parts = vectors.T @ wanted
    # Directions in which the rows cannot be told from dependent ones: dividing by their eigenvalues would blow rounding
    # up.
    kept = values > CUTOFF * len(wanted)
    nearest: Vector = vectors[:, kept] @ (parts[kept] / values[kept])
    # Rounding leaves an eigenvector known to about the root of what separates its eigenvalue from zero.
    missing = not bool(kept.all()) and float(np.abs(parts[~kept]).max()) > 1e-6 * float(np.abs(wanted).max())
    return nearest, missing


def dependence(rows: UnitRows) -> Vector:
    r"""The coefficients ``[k]`` nearest to ones with :math:`\sum_i z_i u_i = 0`; zero if only zeros do."""
    values, vectors = np.linalg.eigh(rows.cosines)
    # Ones, projected onto the coefficients whose combination vanishes.
    null = vectors[:, values <= CUTOFF * len(values)]
    found: Vector = null @ null.sum(axis=0)
    return found
