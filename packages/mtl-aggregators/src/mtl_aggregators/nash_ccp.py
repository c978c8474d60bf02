"""The convex–concave procedure of Nash-MTL; the only importer of cvxpy."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from mtl_aggregators.solvers import Solution, fair_residual, min_norm, unit_rows
from mtl_aggregators.solvers.rows import RESOLUTION
from mtl_aggregators.solvers.solution import Vector
from mtl_core import MissingExtraError, SolverError

__all__ = ["convex_concave", "require_cvxpy"]

TOLERANCE = 1e-3
"""Residual that the procedure must reach; the paper's stopping rule."""


def require_cvxpy() -> None:
    """Raise ``MissingExtraError`` if cvxpy is not installed."""
    if importlib.util.find_spec("cvxpy") is None:
        raise MissingExtraError('NashMTL(solver="ccp")', "mtl-aggregators[cvxpy]")


def convex_concave(gramian: Vector, *, max_iters: int = 20, ridge: float = 1e-3) -> Solution:
    r"""Weights with :math:`(Gw)_i = 1/w_i` by a sequence of convex programs.

    With :math:`\varphi_i(w) = \log w_i + \log (Gw)_i`, minimise :math:`\sum_i (Gw)_i + \varphi_i(w)` subject to
    :math:`\varphi_i(w) \ge 0`, :math:`w > 0`, the concave :math:`\varphi_i` in the objective replaced by its tangent
    at the last iterate. The program is solved on unit rows.

    Args:
        gramian: ``[m, m]``, float64, finite.
        max_iters: convex programs at most.
        ridge: added to the diagonal of the cosines where zero lies in the convex hull.

    Returns:
        weights ``[m]``, 0 for zero rows, and the residual :math:`\max_i |w_i (Gw)_i - 1|`.

    Raises:
        SolverError: the residual is above 1e-3.

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, section 3.2.
    """
    import cvxpy

    # cvxpy's names are only partly typed.
    cp: Any = cvxpy

    rows = unit_rows(gramian)
    k = len(rows.norms)
    if k == 0:
        return Solution(np.zeros(rows.size), 0.0, 0)
    cosines = rows.cosines
    closest = min_norm(cosines).value
    regularised = float(closest @ cosines @ closest) <= 4.0 * RESOLUTION * k
    if regularised:
        cosines = cosines + ridge * np.eye(k)
    y = cp.Variable(k, pos=True)
    tangent = cp.Parameter(k)
    progress = cosines @ y
    problem = cp.Problem(
        cp.Minimize(cp.sum(progress) + tangent @ y), [-cp.log(y) - cp.log(progress) <= 0.0, progress >= 0.0]
    )
    # The min-norm point lets every task progress; weights of zero are lifted, for their logarithm is needed.
    closest = min_norm(cosines).value
    value: Vector = np.maximum(closest / np.sqrt(closest @ cosines @ closest), 1e-3)
    residual = np.inf
    iteration = 0
    for iteration in range(1, max_iters + 1):
        reached = np.maximum(cosines @ value, 1e-3)
        # The gradient of φ = Σ log y_i + log (Cy)_i at the last iterate; constants do not move the minimiser.
        tangent.value = 1.0 / value + cosines @ (1.0 / reached)
        problem.solve(solver=cp.CLARABEL)
        if y.value is None:
            raise SolverError(
                f"the convex program ended as {problem.status}", residual=float(residual), iterations=iteration
            )
        moved = float(np.abs(y.value - value).max())
        value = np.asarray(y.value, dtype=np.float64)
        residual = fair_residual(cosines, value, 1.0)
        if residual < 1e-9 or moved < 1e-9 * float(np.abs(value).max()):
            break
    if not residual <= TOLERANCE:
        raise SolverError(
            "the convex-concave procedure did not converge", residual=float(residual), iterations=iteration
        )
    weights = value / (rows.norms * rows.scale)
    return Solution(rows.expand(weights), float(residual), iteration, regularised)
