r"""Many non-negative quadratic programs with one matrix."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dposv

from mtl_aggregators.solvers.rows import RESOLUTION
from mtl_aggregators.solvers.solution import Vector

__all__ = ["nonnegative_quadratics"]

MAX_ROUNDS = 12
"""Exchanges after which a problem is given up. Well-conditioned ones end after 3 to 7."""


def nonnegative_quadratics(matrix: Vector, linear: Vector) -> Vector:
    r"""The minimisers of :math:`\tfrac12 x^\top Q x + q^\top x` over :math:`x \ge 0` for several :math:`q`.

    Block principal pivoting: each problem guesses which coordinates are positive, solves for them, and exchanges all
    those that turn out negative, in :math:`x` or in its slack, at once. That is several times faster than adding one
    coordinate after another where many are positive, but it may go round in circles; there is no attempt to rescue
    it, for the caller has a slower method that cannot.

    Args:
        matrix: ``Q`` ``[k, k]``, positive semi-definite up to rounding, unit diagonal.
        linear: ``[n, k]``, one ``q`` in each row.

    Returns:
        ``[n, k]``, non-negative; a row of NaN where no solution was found. The caller checks the residuals.

    References:
        Júdice and Pires, *A block principal pivoting algorithm for large-scale strictly monotone linear
        complementarity problems*, Computers & Operations Research 1994; Kim and Park, *Fast nonnegative matrix
        factorization*, SIAM J. Sci. Comput. 2011.

    Example:
        >>> nonnegative_quadratics(np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[-1.0, 1.0], [1.0, 1.0]])).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    n, k = linear.shape
    lifted = matrix.copy()
    # As in ``rows.factor``: duplicated rows make the system singular, and their rounding may make it indefinite.
    lifted.ravel()[:: k + 1] += RESOLUTION * k
    # The first guess: coordinates whose slack is negative at x = 0.
    free = linear < 0.0
    found = np.full((n, k), np.nan)
    rest = np.arange(n)
    for _ in range(MAX_ROUNDS):
        points = np.zeros((len(rest), k))
        solved = np.ones(len(rest), dtype=bool)
        for row, (taken, right) in enumerate(zip(free, linear[rest], strict=True)):
            places = np.flatnonzero(taken)
            if len(places):
                _, part, info = dposv(lifted[places[:, None], places].T, -right[places], overwrite_a=1)
                points[row, places] = part
                solved[row] = info == 0
        slack = points @ lifted
        slack += linear[rest]
        # At the solution x is not negative where it is free, and its slack not where x is zero.
        wrong = np.where(free, points, slack) < -ROUNDING
        done = ~wrong.any(axis=1)
        found[rest[done & solved]] = np.maximum(points[done & solved], 0.0)
        open_ = ~done & solved
        rest = rest[open_]
        if not len(rest):
            break
        # What was free and negative becomes zero, what was zero with a negative slack becomes free.
        free = free[open_] ^ wrong[open_]
    return found


ROUNDING = 1e-13
"""Negative values up to this are zeros."""
