"""The updates of released code at the scale at which it hands them to the optimiser, on whole gradients in numpy.

Each takes a Jacobian ``[m, d]`` and returns the update ``[d]``. The problems are solved by a general convex solver to
its full accuracy, since it is the scale that is compared and not how far an iteration of fixed length gets.
"""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, root

Array = NDArray[np.float64]


def _weights(objective: Callable[[cp.Variable], cp.Expression], slope: Callable[[Array], Array], m: int) -> Array:
    """The minimiser over the simplex; on its support, what a conic solver leaves is taken away by root finding."""
    w = cp.Variable(m)
    problem = cp.Problem(cp.Minimize(objective(w)), [w >= 0.0, cp.sum(w) == 1.0])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    known = np.asarray(w.value)
    support = np.flatnonzero(known > 1e-4)

    def gap(unknown: Array) -> Array:
        inside = np.zeros(m)
        inside[support] = unknown[:-1]
        equations: Array = np.append(slope(inside)[support] - unknown[-1], unknown[:-1].sum() - 1.0)
        return equations

    start = np.append(known[support], slope(known)[support].mean())
    found = np.zeros(m)
    found[support] = root(gap, start, tol=1e-15).x[:-1]
    return found


def mgda(rows: Array) -> Array:
    """The min-norm weights times the number of tasks, "to make sure that they sum to it"."""
    scaled = rows / np.abs(rows).max()
    w = _weights(lambda w: cp.norm(scaled.T @ w), lambda w: scaled @ (w @ scaled), len(rows))
    found: Array = len(rows) * w @ rows
    return found


def cagrad(rows: Array, c: float = 0.4, mean: float = 1.0, radius: float = 1.0) -> Array:
    """Divided by ``1 + c²``, and times the number of tasks "to match the sum of the losses"."""
    size = np.abs(rows).max()
    scaled = rows / size
    centre = scaled.mean(axis=0)
    length = float(np.linalg.norm(centre))

    def slope(w: Array) -> Array:
        worst = w @ scaled
        gradient: Array = mean * scaled @ centre + radius * c * length * scaled @ worst / np.linalg.norm(worst)
        return gradient

    w = _weights(lambda w: mean * (scaled @ centre) @ w + radius * c * length * cp.norm(scaled.T @ w), slope, len(rows))
    worst = w @ scaled
    update: Array = size * (centre + c * length / np.linalg.norm(worst) * worst) / (1.0 + c**2) * len(rows)
    return update


def imgrad(rows: Array, c: float = 0.8) -> Array:
    """CAGrad's with both terms weighed by the cosine of the mean with the min-norm point."""
    closest, centre = mgda(rows), rows.mean(axis=0)
    balance = float(closest @ centre / np.linalg.norm(closest) / np.linalg.norm(centre))
    return cagrad(rows, c, mean=1.5 - balance, radius=balance)


def nash_mtl(rows: Array, steps: int = 20) -> Array:
    """The convex–concave programs on the Gramian divided by its norm, which the programs know, from weights of 1."""
    gramian = rows @ rows.T
    norm = float(np.linalg.norm(gramian))
    gramian = gramian / norm
    m = len(rows)
    before = np.ones(m)
    for _ in range(steps):
        # In y = √norm w the programs are these, at every scale.
        y, reached = cp.Variable(m), gramian @ before
        slope = 1.0 / before + (1.0 / reached) @ gramian
        inside = [cp.log(y) + cp.log(gramian @ y) >= 0.0]
        cp.Problem(cp.Minimize(cp.sum(gramian @ y) + slope @ y), inside).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
        )
        before = np.asarray(y.value)
    update: Array = before @ rows / np.sqrt(norm)
    return update


def fairgrad(rows: Array, alpha: float = 2.0) -> Array:
    """``least_squares`` on ``G w = w^(−1/α)``, and times the number of tasks."""
    gramian = rows @ rows.T
    # At the raw scale it does not converge: solved in units of the trace, as its solution scales.
    size = np.trace(gramian)
    start = np.full(len(rows), 1.0)
    found = least_squares(
        lambda w: gramian / size @ w - w ** (-1.0 / alpha),
        start,
        bounds=(1e-9, np.inf),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    update: Array = len(rows) * size ** (-alpha / (1.0 + alpha)) * found.x @ rows
    return update


def dwa_by_windows(costs: Array, temperature: float = 2.0) -> Array:
    """The weights of the losses, whose *mean* is differentiated, after two windows of costs ``[2 * window, m]``."""
    half = len(costs) // 2
    ratio = np.exp(costs[half:].mean(axis=0) / costs[:half].mean(axis=0) / temperature)
    weights: Array = ratio * costs.shape[1] / ratio.sum()
    return weights / costs.shape[1]
