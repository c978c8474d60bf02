r"""The direction nearest to a given one that makes a demanded progress on every task."""

from __future__ import annotations

import numpy as np

from mtl_aggregators.solvers.rows import EPS, RESOLUTION, factor, non_negative_least_squares
from mtl_aggregators.solvers.solution import Solution, Vector
from mtl_core import SolverError

__all__ = ["least_distance"]

TOLERANCE = 1e-8
"""Largest residual of a returned solution, beyond the rounding of its coefficients."""


def least_distance(cosines: Vector, demanded: Vector) -> Solution:
    r"""The shortest :math:`x = \sum_j \mu_j u_j` with :math:`\langle u_j, x\rangle \ge h_j` for all unit gradients.

    One non-negative least-squares problem on :math:`[R; h^\top]`, whose residual also tells whether the demands can be
    met at all.

    Args:
        cosines: ``[k, k]``, float64, unit diagonal.
        demanded: ``h`` ``[k]``.

    Returns:
        :math:`\mu \ge 0` ``[k]``. ``regularised`` says that no ``x`` meets the demands; the coefficients are 0 then.
        The residual is the largest violation or complementarity, relative to the largest demand.

    Raises:
        SolverError: the residual is above 1e-8, beyond rounding.

    References:
        Lawson and Hanson, *Solving Least Squares Problems*, SIAM 1995, chapter 23, section 4 (least distance
        programming).

    Example:
        >>> least_distance(np.eye(2), np.array([1.0, -1.0])).value.round(12).tolist()
        [1.0, 0.0]
    """
    k = len(demanded)
    size = float(np.abs(demanded).max(initial=0.0))
    # Zero meets demands that are not positive, and nothing is shorter.
    if not k or demanded.max() <= 0.0:
        return Solution(np.zeros(k), 0.0, 0)
    wanted = demanded / size
    root = factor(cosines)
    # Lawson and Hanson's form: from the residual of min ‖[R; h] x − (0, …, 0, 1)‖ over x ≥ 0 the solution is x divided
    # by the residual's last entry.
    system = np.vstack([root, wanted])
    target = np.zeros(len(system))
    target[-1] = 1.0
    found = non_negative_least_squares(system, target)
    if found is None:
        raise SolverError("the nearest direction was not found", residual=float("inf"), iterations=1)
    rest = 1.0 - float(wanted @ found)
    # ‖residual‖² = rest; it vanishes where the demands contradict each other.
    if rest <= 4.0 * RESOLUTION * k * (1.0 + float(found.sum())) ** 2:
        return Solution(np.zeros(k), 0.0, 1, True)
    shares = found / rest
    slack = (root @ shares) @ root - wanted
    total = 1.0 + float(shares.sum())
    residual = max(0.0, -float(slack.min()), abs(float(shares @ slack)) / total)
    if not residual <= TOLERANCE + 16.0 * EPS * total:
        raise SolverError("the nearest direction is not optimal", residual=residual, iterations=1)
    return Solution(shares * size, residual, 1)
