r"""The point at which every task's progress is in a fixed power law with its weight."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg.lapack import dposv

from mtl_aggregators.solvers.min_norm import min_norm
from mtl_aggregators.solvers.rows import EPS, RESOLUTION, unit_rows
from mtl_aggregators.solvers.solution import Solution, Vector
from mtl_core import SolverError

__all__ = ["fair_point", "fair_residual"]

MAX_STEPS = 300
"""Newton steps at most. Typical are 4 to 10; large α with strongly unequal tasks takes more, since weights then span
hundreds of powers of ten."""
TOLERANCE = 1e-12
"""Residual at which the iteration ends."""
ROUNDING = 4.0 * EPS
"""A progress that agrees with its target to this much of the sum of its terms' absolute values is right to rounding."""
UNDETERMINED = 1e-6
"""Relative rounding error of a progress above which it is asked whether a solution exists at all."""
PATIENCE = 10
"""Newton steps before it is asked whether rounding leaves a solution determined."""
STAGE = 1.5
"""Factor between the values of α that are visited on the way to a large one."""
FIRST_STAGE = 1.5
"""Where the way to a large α begins."""
SMALLEST = -500.0
"""Smallest logarithm of a weight that takes part in the others' progress; below, only its own equation knows it."""

HIGHEST = 700.0
"""Largest logarithm of an entry of Newton's system; a little above, exp() overflows."""


def fair_point(gramian: Vector, alpha: float, *, ridge: float = 1e-3) -> Solution:
    r"""Positive weights with :math:`(Gw)_i = w_i^{-1/\alpha}`.

    With :math:`p = 1/\alpha` this is the stationarity condition of the strictly convex
    :math:`\frac12 w^\top G w - \sum_i \varphi(w_i)`, :math:`\varphi'(w) = w^{-p}`. On unit rows, :math:`y_i =
    w_i\|g_i\|` solves :math:`C y = a \circ y^{-p}` with :math:`a_i = \|g_i\|^{p-1}`, where orthogonal gradients give
    :math:`y_i = a_i^{1/(1+p)}`, the starting point of a Newton iteration damped so that no weight loses more than
    nine tenths in one step. Large :math:`\alpha` is reached through smaller ones.

    A solution exists unless zero lies in the convex hull of the non-zero gradients (a Pareto-stationary point). There
    ``ridge`` is added to the diagonal of the cosines, and the result is marked ``regularised``. The same happens so
    close to such a point that rounding keeps the iteration from ending.

    Args:
        gramian: ``[m, m]``, float64, finite.
        alpha: positive; 1 is Nash-MTL.
        ridge: positive, relative to the squared norm of each gradient.

    Returns:
        weights ``[m]``, 0 for zero rows. The residual is :math:`\max_i |w_i^{p}(Gw)_i - 1|` (of the regularised
        problem, where it was). Next to a stationary point, and for :math:`\alpha \ne 1` where norms lie many decades
        apart, that number is limited by the rounding of the Gramian and of the weights themselves; the solution is then
        accepted if every :math:`(Gw)_i` is right to the rounding of its own sum.

    Raises:
        SolverError: the iteration did not reach that accuracy.

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, claim 3.1 (α = 1); Ban and Ji, *Fair
        Resource Allocation in Multi-Task Learning*, ICML 2024, equation 6.

    Example:
        >>> fair_point(np.array([[4.0, 0.0], [0.0, 1.0]]), 1.0).value.tolist()
        [0.5, 1.0]
    """
    rows = unit_rows(gramian)
    if not len(rows.norms):
        return Solution(np.zeros(rows.size), 0.0, 0)
    power = 1.0 / alpha
    logs = np.log(rows.norms)
    regularised = False
    # Impatiently first: whether zero lies in the hull is asked only where rounding leaves the solution undetermined,
    # since the question costs a solve of its own.
    log_y, residual, steps, determined = _solve(rows.cosines, logs, power, patient=False)
    if not determined:
        regularised = _stationary(rows.cosines)
        if not regularised and not math.isfinite(residual):
            # A solution exists, however close: with patience the iteration may still come to its end.
            log_y, residual, more, _ = _solve(rows.cosines, logs, power, patient=True)
            steps += more
            regularised = not math.isfinite(residual)
        if regularised:
            cosines = rows.cosines + ridge * np.eye(len(logs))
            log_y, residual, more, _ = _solve(cosines, logs, power, patient=True)
            steps += more
    if not math.isfinite(residual):
        raise SolverError("the weights of equal fairness were not found", residual=residual, iterations=steps)
    # Back from unit rows, y = w ‖g‖, and from norms relative to the largest: scaling G by s² scales w by s^(−2/(1+p)).
    # By logarithms, since for large α weights span hundreds of powers of ten.
    weights = np.exp(log_y - logs - (2.0 / (1.0 + power)) * math.log(rows.scale))
    return Solution(rows.expand(weights), residual, steps, regularised)


def fair_residual(gramian: Vector, weights: Vector, alpha: float) -> float:
    r"""How far weights are from a fair point: :math:`\max_i |w_i^{1/\alpha}(Gw)_i - 1|` over the non-zero rows."""
    active = gramian.diagonal() > 0.0
    if not active.any():
        return 0.0
    progress = gramian @ weights
    return float(np.abs(weights[active] ** (1.0 / alpha) * progress[active] - 1.0).max())


def _stationary(cosines: Vector) -> bool:
    """Whether zero lies in the convex hull of the unit gradients, as far as rounding lets one tell."""
    closest = min_norm(cosines).value
    return float(closest @ cosines @ closest) <= 4.0 * RESOLUTION * len(closest)


def _solve(cosines: Vector, logs: Vector, power: float, *, patient: bool) -> tuple[Vector, float, int, bool]:
    """Solve ``C y = a y^-p`` for ``log y``.

    Returns:
        ``log y``, its residual (infinite if it was not found), the steps, and whether rounding leaves it determined.
    """
    k = len(logs)
    if k == 2 and power == 1.0:
        return _two(cosines.item(0, 1), cosines.item(0, 0))
    # For small p the solution lies far from the orthogonal case: with norms six decades apart, α = 20 took 62 Newton
    # steps from there against 43 by way of smaller α (medians), and α = 50 did not end within 300 in 3 of 100 draws.
    stage = max(power, 1.0 / FIRST_STAGE)
    log_a = (stage - 1.0) * logs
    log_y = log_a / (1.0 + stage)
    steps = 0
    while True:
        log_y, residual, more, determined = _newton(
            cosines, log_a, log_y, stage, TOLERANCE if stage == power else 1e-3, patient=patient
        )
        steps += more
        if stage == power or not math.isfinite(residual):
            return log_y, residual, steps, determined
        # The progress of each task, by its equation: as a sum it may be nothing but rounding.
        log_progress = log_a - stage * log_y
        stage = max(power, stage / STAGE)
        log_a = (stage - 1.0) * logs
        # The same progress of every task under the new power: the weights that the next α gives to it.
        log_y = (log_a - log_progress) / stage


def _newton(
    cosines: Vector, log_a: Vector, log_y: Vector, power: float, tolerance: float, *, patient: bool
) -> tuple[Vector, float, int, bool]:
    k = len(log_a)
    magnitude: Vector | None = None
    for step in range(MAX_STEPS):
        # Below, exp() underflows to 0, and the system's diagonal, which divides by y, to infinity.
        known = np.maximum(log_y, SMALLEST)
        y = np.exp(known)
        target = np.exp(log_a - power * log_y)
        missing = target - cosines @ y
        residual = float(np.abs(missing / target).max())
        if residual <= tolerance:
            return log_y, residual, step, True
        # Not in the first steps, which are far from rounding: it costs another product with the matrix.
        if step >= 4:
            if magnitude is None:
                magnitude = np.abs(cosines)
            rounding = magnitude @ y
            # A logarithm of size t gives its number to t times the unit rounding.
            rounding *= ROUNDING * (1.0 + float(np.abs(known).max()))
            if not (np.abs(missing) > 1e-2 * tolerance * target + rounding).any():
                return log_y, residual, step, float((rounding / target).max()) <= UNDETERMINED
            if step >= PATIENCE and not patient and float((rounding / target).max()) > UNDETERMINED:
                return log_y, math.inf, step, False
        # The derivative of C y − a y^−p by y: positive definite, so that the Cholesky factorisation fails only for a
        # point that is not finite.
        system = cosines.copy()
        # By logarithms, and no further than float64 goes: such a weight stays where it is.
        system.ravel()[:: k + 1] += power * np.exp(np.minimum(log_a - power * log_y - known, HIGHEST))
        _, change, info = dposv(system, missing, overwrite_a=1)
        if info != 0:
            return log_y, math.inf, step, False
        change /= y
        # A change of -1 or less would make a weight zero or negative, whose logarithm does not exist.
        lowest = change.min()
        if lowest < -0.9:
            change *= -0.9 / lowest
        # The step is Newton's in y, added to its logarithm: weights stay positive and small ones keep their digits.
        log_y = log_y + np.log1p(change)
    return log_y, math.inf, MAX_STEPS, False


def _two(cosine: float, diagonal: float) -> tuple[Vector, float, int, bool]:
    """Nash-MTL's closed form for two tasks: unit rows make them equal, y = 1/√(1 + cos φ)."""
    total = diagonal + cosine
    if total <= 16.0 * EPS:
        return np.zeros(2), math.inf, 0, False
    return np.full(2, -0.5 * math.log(total)), 0.0, 0, True
