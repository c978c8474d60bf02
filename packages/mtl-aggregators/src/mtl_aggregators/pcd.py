"""PCD: follow one task as far as the others allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.parameters import match_tasks, one_per_task, same_tasks
from mtl_aggregators.solvers import unit_rows
from mtl_aggregators.solvers.least_distance import least_distance
from mtl_aggregators.solvers.rows import RESOLUTION
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, InvalidParameterError, checks

__all__ = ["PCD"]


class PCD(GramianMethod):
    r"""Priority-constrained descent: the primary gradient, changed as little as the secondary tasks' progress asks.

    .. math::
        \tilde d = \arg\min_d \tfrac12\|d - \tilde g_p\|^2 \;\text{ s.t. }\; \langle \tilde g_j, d\rangle \ge \tau_j
        \|\tilde g_j\|^2 \; (j \ne p), \qquad \tilde g_i = g_i / \sqrt{\hat v_i}

    with :math:`\hat v_i` the bias-corrected moving average of :math:`\|g_i\|^2`; the update is :math:`\tilde d` at the
    length of the primary gradient.

    Args:
        tau: the share of its own normalised progress that each secondary task is granted, in [0, 1]: one number, or
            ``[m]`` with the primary's entry ignored.
        primary: position of the primary task.
        beta: decay of the moving average, in [0, 1).

    Raises:
        InvalidParameterError: ``tau`` or ``beta`` is out of its range, or ``primary`` is not a whole number of at least
            0.
        InvalidInputError: when called on fewer tasks than ``primary`` needs, or on another number than ``tau`` has.

    Note:
        The formula is the one that TorchJD 0.18 documents for the paper; updates agree with its own over several steps
        (a test). The reference code enumerates sets of constraints; here the problem is one of non-negative least
        squares. No constant is added to the averages, so that the gradients' scale has no effect. If the constraints
        contradict each other, the update is the primary gradient, and the report says ``regularised_solve``; if the
        primary gradient is zero, so is the update. A secondary task with a zero gradient constrains nothing.

    References:
        *Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective Optimization*,
        TMLR 2026; Lawson and Hanson, *Solving Least Squares Problems*, SIAM 1995, chapter 23 (least distance
        programming).

    Example:
        >>> import torch
        >>> PCD(tau=0.0)(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.7071, 0.7071])
    """

    has_memory = True
    remembers_lengths = True

    def __init__(self, *, tau: float | Sequence[float] | Tensor = 0.02, primary: int = 0, beta: float = 0.999) -> None:
        super().__init__()
        self.tau = one_per_task("tau", tau)
        if not bool(((self.tau >= 0.0) & (self.tau <= 1.0)).all()):
            raise InvalidParameterError(f"`tau` must be a number in [0, 1] or one per task, got {tau!r}.")
        if type(primary) is not int or primary < 0:
            raise InvalidParameterError(f"`primary` must be the position of a task, got {primary!r}.")
        self.primary = primary
        self.beta = checks.in_interval("beta", beta, 0.0, 1.0, "[)")
        self._steps = 0
        self._squares: Vector | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        laws: set[Law] = {"homogeneous", "orthogonal", "equal_rows"}
        scale = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="TMLR 2026 (priority-constrained descent)",
            min_tasks=self.primary + 1,
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m, p = len(gramian), self.primary
        if p >= m:
            raise InvalidInputError(f"`gramian` must have the primary task, number {p}, got {m} tasks.")
        if self.tau.ndim:
            match_tasks("tau", self.tau, m)
        scales = self._averages(gramian.diagonal())
        rows = unit_rows(gramian)
        kept = np.arange(m) if rows.kept is None else rows.kept
        found = np.flatnonzero(kept == p)
        weights = np.zeros(m)
        if not len(found):
            return weights
        at = int(found[0])
        others = np.delete(np.arange(len(kept)), at)
        # Lengths of the normalised gradients, and what each secondary unit gradient demands of x = d − g̃_p.
        lengths = np.sqrt(gramian.diagonal()[kept]) / scales[kept]
        tau = np.broadcast_to(self.tau.numpy(), m)[kept]
        demanded = tau[others] * lengths[others] - lengths[at] * rows.cosines[others, at]
        solution = least_distance(rows.cosines[np.ix_(others, others)], demanded)
        self.record(solution)
        shares = np.zeros(len(kept))
        shares[at] = lengths[at]
        shares[others] = solution.value
        squared = float(shares @ rows.cosines @ shares)
        # The direction is nothing but rounding: stretched to the primary gradient's length, it would be noise of full
        # size.
        if squared <= RESOLUTION * len(kept) * float(shares.sum()) ** 2:
            return weights
        weights[kept] = shares / rows.norms * (rows.norms[at] / np.sqrt(squared))
        return weights

    def _averages(self, squares: Vector) -> Vector:
        """The root of the averaged squared norms ``[m]``."""
        if self._squares is None:
            self._squares = np.zeros(len(squares))
        same_tasks("PCD", len(self._squares), len(squares))
        self._steps += 1
        # Of squared norms, m numbers: the gradients themselves need not be remembered.
        self._squares = self.beta * self._squares + (1.0 - self.beta) * squares
        roots: Vector = np.sqrt(self._squares / (1.0 - self.beta**self._steps))
        return roots

    def reset(self) -> None:
        """Forget the averages."""
        self._steps = 0
        self._squares = None

    def get_extra_state(self) -> dict[str, Any]:
        """The step count and the averages."""
        return {
            "steps": self._steps,
            "squares": None if self._squares is None else torch.from_numpy(self._squares.copy()),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._steps = int(state["steps"])
        squares = state["squares"]
        self._squares = None if squares is None else squares.cpu().numpy().copy()
