r"""The dual problem of CAGrad: the direction within a ball around the mean gradient that is best for the worst task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtrs

from mtl_aggregators.solvers.min_norm import min_norm
from mtl_aggregators.solvers.rows import EPS, RESOLUTION, UnitRows, factor, non_negative_least_squares, unit_rows
from mtl_aggregators.solvers.solution import Solution, Vector
from mtl_core import SolverError

__all__ = ["BallSolution", "ball_dual"]

TOLERANCE = 1e-8
"""Largest residual of a returned solution, beyond the rounding of its coefficients."""
TARGET = 1e-13
"""Residual at which the search ends at once."""
MAX_SOLVES = 60
LARGEST = 1e13
"""Ratio of the two terms from which on the second only decides between tasks that rounding cannot tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BallSolution(Solution):
    r"""A solution of the dual, with the step that it stands for.

    Attributes:
        step: coefficients ``[m]`` of the step :math:`J^\top s = \|g_0\| g_w/\|g_w\|`. Where :math:`g_w = 0` and that
            quotient means nothing, the shortest step that is optimal; its length is then at most :math:`\|g_0\|`.
            Zero if ``norm`` is.
    """

    step: Vector


def ball_dual(gramian: Vector, *, linear: float, norm: float) -> BallSolution:
    r"""Minimiser over the simplex of :math:`a\,\langle g_w, g_0\rangle + b\,\|g_0\|\|g_w\|`.

    It is the dual of :math:`\max_{\|x\| \le b\|g_0\|} \min_i \langle g_i, a g_0 + x\rangle`, with :math:`x = b\|g_0\|
    g_w/\|g_w\|`. Writing :math:`\sqrt q = \min_t \frac{q}{2t} + \frac t2` makes it the min-norm point of the shifted
    gradients :math:`g_i + \tau g_0` with the scalar :math:`\tau = a\|g_w\| / b\|g_0\|`. For a fixed set of tasks with
    positive weight the root is that of a quadratic; the set is found by non-negative least squares at a guess of
    :math:`\tau`, and usually right at the first or second.

    If zero lies in the convex hull, the objective has a kink where :math:`g_w = 0`. Whether that is the minimiser is
    decided first, by projecting :math:`a g_0` onto the cone of directions that no task objects to.

    Args:
        gramian: ``[m, m]``, float64, finite.
        linear: ``a``, positive; 1 for CAGrad.
        norm: ``b``, non-negative; CAGrad's ``c``.

    Returns:
        weights ``[m]`` in the simplex and the step. The residual is the largest violation of optimality over unit
        gradients: of :math:`\langle g_i, a g_0 + x\rangle \ge \mu` with equality where :math:`w_i > 0`, and of the
        step's length, relative to :math:`(a + b)\|g_0\|`.

    Raises:
        SolverError: the residual is above 1e-8, beyond rounding.

    References:
        Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS 2021, equation 4.

    Example:
        >>> solution = ball_dual(np.array([[1.0, 0.0], [0.0, 1.0]]), linear=1.0, norm=0.5)
        >>> solution.value.round(12).tolist(), solution.step.round(12).tolist()
        ([0.5, 0.5], [0.5, 0.5])
    """
    rows = unit_rows(gramian)
    k, norms = len(rows.norms), rows.norms
    if k == 0:
        return BallSolution(np.full(rows.size, 1.0 / rows.size), 0.0, 0, step=np.zeros(rows.size))
    if k == 1:
        one = rows.expand(np.ones(1))
        return BallSolution(one, 0.0, 0, step=one / rows.size)
    cosines = rows.cosines
    # Inner products of the unit gradients with the sum of all gradients, and that sum's squared length.
    pull = cosines @ norms
    squared = float(norms @ pull)
    if squared <= 4.0 * EPS * float(norms @ (np.abs(cosines) @ norms)):
        # The mean gradient is zero: nothing to average around.
        return BallSolution(rows.expand(np.full(k, 1.0 / k)), 0.0, 0, step=np.zeros(rows.size))
    length = math.sqrt(squared)
    pull /= length
    # Without a ball there is no step, and the search below would divide by b.
    if norm == 0.0 or linear > LARGEST * norm:
        return _face(rows, pull * norms, length, step=norm > 0.0)
    search = _Search(cosines, norms, norms / length, linear / norm)
    weights, step, residual = search.run()
    # Next to a stationary point the step's coefficients are so large that their own rounding shows.
    if not residual <= TOLERANCE + 16.0 * EPS * float(step.sum()):
        raise SolverError("CAGrad's dual was not solved", residual=residual, iterations=search.solves)
    # `step` is in unit rows and of unit length: in gradients, and of the mean gradient's length.
    return BallSolution(
        rows.expand(weights), residual, search.solves, step=rows.expand(step * (length / rows.size) / norms)
    )


class _Search:
    """The search for ``y ≥ 0`` of unit length with ``C y + κ h ≥ μ b``, tight where ``y_i > 0``.

    ``C`` are the cosines, ``h`` the cosines with the mean gradient, ``κ = a/b``, and ``b`` the inverse norms (largest
    1). The unit step is ``Σ y_i u_i``, and the dual weights are ``y_i/‖g_i‖``, normalised.
    """

    def __init__(self, cosines: Vector, norms: Vector, mean: Vector, ratio: float) -> None:
        self.inverse = norms.min() / norms
        self.ratio = ratio
        self.root = factor(cosines)
        self.mean = self.root @ mean
        self.solves = 0

    def run(self) -> tuple[Vector, Vector, float]:
        """Dual weights, unit step and residual."""
        best: tuple[float, Vector] = (math.inf, np.zeros(len(self.inverse)))
        # Without a shift the hull's nearest point is MGDA's: its length tells whether zero lies in the hull.
        sigma = 0.0
        shifted = self._hull(sigma)
        point = self._length(shifted)
        support = shifted > 0.0
        # Lengths are known to the root of what squared distances are known to, times the terms that they are summed
        # from.
        if point <= math.sqrt(4.0 * RESOLUTION * len(shifted)) * float(shifted.sum()):
            # Zero lies in the hull. Is the kink there optimal, the cone of harmless directions within reach?
            cone = self._nnls(self.root, -self.ratio * self.mean)
            if self._length(cone) <= 1.0:
                weights = shifted * self.inverse
                return weights / weights.sum(), cone, self._cone_residual(cone)
            support = cone > 0.0
        # The map from a shift to the one that its min-norm point asks for, κ ‖Σ z_i u_i‖ / Σ z_i b_i, has the root as
        # its fixed point. What it reaches from the shift 0 lies below the root.
        low, high = self.ratio * point / float(shifted @ self.inverse), math.inf
        previous: NDArray[np.bool_] | None = None
        while self.solves < MAX_SOLVES:
            # The same tasks as last time give the same equations and the same step, which was not good enough.
            guess: float | None = None
            if previous is None or not np.array_equal(support, previous):
                residual, step = self._solve_on(np.flatnonzero(support))
                if residual < best[0]:
                    best = (residual, step)
                if residual <= TARGET:
                    break
                total = float(step @ self.inverse)
                # The shift that belongs to this step, which has length 1: the next hull is asked there, and confirms
                # its tasks or not.
                guess = self.ratio / total if total > 0.0 else None
            elif best[0] <= TOLERANCE:
                break
            previous = support
            sigma = self._next(guess, sigma, low, high)
            shifted = self._hull(sigma)
            reached = self.ratio * self._length(shifted) / float(shifted @ self.inverse)
            # Which side of the root this shift lies on, whatever became of the guess: the bracket always shrinks.
            if reached >= sigma:
                low = max(low, sigma)
            else:
                high = min(high, sigma)
            # No number lies between the two any more.
            if high <= low * (1.0 + 4.0 * EPS):
                break
            support = shifted > 0.0
        if not best[0] <= TOLERANCE:
            # So near to a stationary point that no set of tasks could be told from its neighbours.
            best = min(best, self._as_found(shifted), key=lambda found: found[0])
        residual, step = best
        step = np.maximum(step, 0.0)
        weights = step * self.inverse
        total = float(weights.sum())
        return (weights / total if total > 0.0 else weights), step, residual

    def _cone_residual(self, step: Vector) -> float:
        slack = (self.root @ step + self.ratio * self.mean) @ self.root
        # Relative to the coefficients, which are large near a stationary point and round the product as they do.
        complementarity = abs(float(step @ slack)) / (1.0 + float(step.sum()))
        return max(0.0, -float(slack.min()), complementarity) / (1.0 + self.ratio)

    def _as_found(self, shifted: Vector) -> tuple[float, Vector]:
        """The step along a point of the hull as it stands, with its residual."""
        length = self._length(shifted)
        if length == 0.0:
            return math.inf, shifted
        step = shifted / length
        slack = (self.root @ step + self.ratio * self.mean) @ self.root
        # The multiplier μ that fits this step best is taken out; what is left must vanish for tasks with weight, and
        # not be negative for the others.
        slack -= self.inverse * (float(step @ slack) / float(step @ self.inverse))
        worst = max(-float(slack.min()), float(np.abs(slack[step > 0.0]).max()))
        return worst / (1.0 + self.ratio), step

    def _length(self, coefficients: Vector) -> float:
        """Length of a combination of unit gradients; by way of the factor, which does not cancel squares."""
        point = self.root @ coefficients
        return math.sqrt(float(point @ point))

    def _next(self, guess: float | None, sigma: float, low: float, high: float) -> float:
        """Where to look next: at the guess if it lies inside the bracket, else inside the bracket."""
        if guess is not None and low < guess < high and guess != sigma:
            return guess
        # Nothing is known above yet. Gradients, and with them the shift, may lie decades apart: tenfold steps, and
        # means of logarithms.
        if math.isinf(high):
            return 10.0 * max(low, sigma, self.ratio)
        return math.sqrt(low * high) if low > 0.0 else 0.1 * high

    def _nnls(self, matrix: Vector, target: Vector) -> Vector:
        self.solves += 1
        solution = non_negative_least_squares(matrix, target)
        if solution is None:
            raise SolverError("CAGrad's dual was not solved", residual=math.inf, iterations=self.solves)
        return solution

    def _hull(self, sigma: float) -> Vector:
        """The min-norm point of the shifted gradients, up to scale and in unit rows."""
        r = self.root.shape[0]
        system = np.empty((r + 1, len(self.inverse)))
        np.multiply(self.mean[:, None], sigma * self.inverse, out=system[:r])
        system[:r] += self.root
        system[r] = self.inverse
        target = np.zeros(r + 1)
        # The columns' scale carries no meaning; keeping them near unit length keeps the problem conditioned.
        lengths: Vector = np.sqrt(np.einsum("ij,ij->j", system, system))
        system /= lengths
        target[r] = 1.0
        hull: Vector = self._nnls(system, target) / lengths
        return hull

    def _solve_on(self, support: NDArray[np.intp]) -> tuple[float, Vector]:
        """For the tasks in ``support`` alone: the step by a quadratic equation, and its residual over all tasks.

        With ``R_S = Q T``, the step's point is ``Q q`` where ``Tᵀ(q + κ Qᵀe) = μ b`` and ``‖q‖ = 1``. Working on the
        factor instead of the cosines keeps all digits next to a stationary point, where the step's coefficients are
        large.
        """
        step = np.zeros(len(self.inverse))
        # More tasks than dimensions: their step is not unique, and the triangle below would not be square.
        if len(support) > self.root.shape[0]:
            return math.inf, step
        basis, triangle = np.linalg.qr(self.root[:, support])
        forward, info = dtrtrs(triangle, self.inverse[support], trans=1)
        if info != 0:
            return math.inf, step
        length = math.sqrt(float(forward @ forward))
        forward /= length
        offset = self.ratio * (self.mean @ basis)
        along = float(forward @ offset)
        # κQᵀe at right angles to the unit vector f, `forward`. Where κ is large, most lies along f and cancels: as
        # 1 − ‖κQᵀe‖² + (f·κQᵀe)² the discriminant would be off by 1e-16 κ². Twice, as f has length 1 to rounding only.
        aside = offset - along * forward
        aside -= float(forward @ aside) * forward
        # ‖μ'f − κQᵀe‖ = 1 for μ': of its two roots the larger, since μ is what is maximised.
        rest = 1.0 - float(aside @ aside)
        if not (rest >= 0.0 and math.isfinite(length)):
            return math.inf, step
        inside = math.sqrt(rest) * forward - aside
        along += math.sqrt(rest)
        coefficients, info = dtrtrs(triangle, inside)
        if info != 0:
            return math.inf, step
        step[support] = coefficients
        slack: Vector = (basis @ inside + self.ratio * self.mean) @ self.root
        slack -= (along / length) * self.inverse
        # A negative coefficient means the wrong tasks. Where coefficients are so large that their rounding exceeds the
        # target, it counts in proportion.
        negative = -float(coefficients.min()) / (1.0 + EPS * float(np.abs(coefficients).max()) / TARGET)
        worst = max(-float(slack.min()), float(np.abs(slack[support]).max()), negative)
        return worst / (1.0 + self.ratio), step


def _face(rows: UnitRows, values: Vector, length: float, *, step: bool) -> BallSolution:
    """Without the norm term: the tasks that are worst off along the mean gradient, among them the min-norm point.

    Args:
        rows: the unit rows.
        values: inner products of the gradients with the mean one, up to scale.
        length: of the sum of all gradients.
        step: whether there is a step, however small: as long as the mean gradient, towards that point.
    """
    # Tasks whose progress differs from the least by rounding alone belong to the face as well, or the order of tasks
    # would decide.
    scale = float(np.abs(values).max())
    face = np.flatnonzero(values <= values.min() + 16.0 * EPS * scale)
    # In units of the longest of them: beside another task all of them may be tiny.
    norms = rows.norms[face] / rows.norms[face].max()
    part = min_norm(rows.cosines[face][:, face] * (norms[:, None] * norms))
    weights, towards = np.zeros((2, len(values)))
    weights[face] = part.value
    if step:
        unit = part.value * norms
        squared = float(unit @ rows.cosines[face][:, face] @ unit)
        if squared > 4.0 * RESOLUTION * len(face) * float(unit @ unit):
            towards[face] = unit / math.sqrt(squared) * (length / rows.size) / rows.norms[face]
    return BallSolution(rows.expand(weights), part.residual, part.iterations, step=rows.expand(towards))
