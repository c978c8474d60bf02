"""CAGrad: the best direction for the worst task, near the mean gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.solvers import ball_dual, device
from mtl_aggregators.solvers.device.rows import Backend
from mtl_aggregators.solvers.rows import RESOLUTION
from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["CAGrad"]

Rescale = Literal["none", "c", "c2"]


class CAGrad(GramianMethod):
    r"""Conflict-averse gradient descent.

    .. math::
        d = g_0 + \frac{c\|g_0\|}{\|g_w\|} g_w, \qquad
        w = \arg\min_{w\in\Delta} \langle g_w, g_0\rangle + c\|g_0\|\|g_w\|

    It maximises :math:`\min_i \langle g_i, d\rangle` over the ball :math:`\|d - g_0\| \le c\|g_0\|`. ``c = 0`` gives
    the mean gradient, and a large ``c`` the direction of MGDA.

    Args:
        c: radius of the ball relative to :math:`\|g_0\|`, non-negative. The paper proves convergence for ``c < 1``.
        rescale: divide the update by 1, by :math:`1 + c` or by :math:`1 + c^2`. ``None``: ``"none"``, or with
            ``paper_scale`` ``"c2"``.
        paper_scale: multiply by the number of tasks, as the released code does.
        backend: where the weights are computed; see ``GramianMethod``.

    Raises:
        InvalidParameterError: ``c`` is negative or not finite, or ``rescale`` is not an option.

    Note:
        The dual is solved exactly; the released code uses SLSQP. Where :math:`g_w = 0` (a Pareto-stationary point
        within reach), the formula divides by zero; here the update is then the point of the ball nearest to
        :math:`g_0` among the optimal ones. A zero gradient would pull all weight to itself, so such a task only
        counts in the mean.

    References:
        Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS 2021, algorithm 1.

    Example:
        >>> import torch
        >>> CAGrad(c=0.5)(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.7500, 0.7500])
    """

    def __init__(
        self, *, c: float = 0.4, rescale: Rescale | None = None, paper_scale: bool = False, backend: Backend = "auto"
    ) -> None:
        super().__init__(backend=backend)
        self.c = checks.non_negative("c", c)
        self.paper_scale = checks.boolean("paper_scale", paper_scale)
        default: Rescale = "c2" if self.paper_scale else "none"
        self.rescale: Rescale = default if rescale is None else checks.one_of("rescale", rescale, ("none", "c", "c2"))

    @property
    def divisor(self) -> float:
        """What the update is divided by."""
        return {"none": 1.0, "c": 1.0 + self.c, "c2": 1.0 + self.c * self.c}[self.rescale]

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        c, divisor = self.c, self.divisor
        laws: set[Law] = {"permutation", "homogeneous", "orthogonal", "equal_rows", "zero_rows"}
        if self.rescale == "none" and not self.paper_scale:
            laws |= {"ball"}
            if c == 0.0:
                laws |= {"simplex"}
        if c >= 1.0:
            # The ball around the mean then contains zero.
            laws |= {"non_conflicting", "zero_when_stationary"}
        mean = {"none": "(1 + c)/m", "c": "1/m", "c2": "(1 + c)/((1 + c²) m)"}[self.rescale]
        total = {"none": "1 + c", "c": "1", "c2": "(1 + c)/(1 + c²)"}[self.rescale]
        if self.paper_scale:
            scale = Scale(total, lambda m: (1.0 + c) / divisor)
        else:
            scale = Scale(mean, lambda m: (1.0 + c) / divisor / m)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=Scale("(1 + c)/(1 + c²)", lambda m: (1.0 + c) / (1.0 + c * c)),
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Liu et al., NeurIPS 2021",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]`` of the update; see the class."""
        solution = ball_dual(gramian, linear=1.0, norm=self.c)
        self.record(solution)
        return self._around_mean(solution.step)

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]`` of the update, in torch."""
        m = len(gramian)
        weights = torch.full_like(gramian[0], 1.0 / m)
        if self.c > 0.0:
            weights = weights + self.c * device.ball_dual(gramian, linear=1.0, norm=self.c).step
        return weights * ((m if self.paper_scale else 1.0) / self.divisor)

    def augmented(self, gramian: Vector, balance: float) -> Vector:
        r"""The weights ``[m]`` with the two terms of the dual weighed by the balance of the tasks, for ``IMGrad``.

        .. math::
            w = \arg\min_{w\in\Delta} (1.5 - \kappa) \langle g_w, g_0\rangle + \kappa c \|g_0\|\|g_w\|
        """
        solution = ball_dual(gramian, linear=1.5 - balance, norm=balance * self.c)
        self.record(solution)
        step = solution.step
        if balance * self.c == 0.0 and self.c > 0.0:
            # Without the norm term the dual gives no step; the formula of the update makes one of its weights.
            w, m = solution.value, len(gramian)
            terms = float(w**2 @ gramian.diagonal())
            squared = float(w @ gramian @ w)
            if squared > 4.0 * RESOLUTION * m * terms:
                step = w * np.sqrt(max(0.0, float(gramian.sum())) / squared) / m
        return self._around_mean(step)

    def augmented_on_device(self, gramian: Tensor, balance: Tensor) -> Tensor:
        """The same in torch, for a float64 Gramian and a balance without dimensions on its device."""
        m = len(gramian)
        step = torch.zeros_like(gramian[0])
        if self.c > 0.0:
            # Both cases are computed, since asking which it is would wait for the device.
            known = balance > 0.0
            norm = self.c * torch.where(known, balance, 1.0)
            w = device.worst_off(gramian)
            squared = w @ gramian @ w
            there = squared > 4.0 * RESOLUTION * m * (w.square() @ gramian.diagonal())
            length = (gramian.sum().clamp(min=0.0) / torch.where(there, squared, 1.0)).sqrt() / m
            limit = torch.where(there, w * length, 0.0)
            step = torch.where(known, device.ball_dual(gramian, linear=1.5 - balance, norm=norm).step, limit)
        return (step * self.c + 1.0 / m) * ((m if self.paper_scale else 1.0) / self.divisor)

    def _around_mean(self, step: Vector) -> Vector:
        # The step has the mean gradient's length already: d = g_0 + c · step.
        weights: Vector = step * self.c
        weights += 1.0 / len(step)
        return weights * ((len(step) if self.paper_scale else 1.0) / self.divisor)
