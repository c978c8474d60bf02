"""FairGrad: alpha-fair progress of the tasks."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.solvers import Solution, device, fair_point, fair_residual
from mtl_aggregators.solvers.device.rows import Backend
from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["FairGrad"]


class FairGrad(GramianMethod):
    r"""Fair resource allocation: positive weights that equate each task's progress with a power of its weight.

    .. math:: (G w)_i = w_i^{-1/\alpha}, \qquad w > 0

    The update maximises the :math:`\alpha`-fair utility of the progress :math:`\langle g_i, d\rangle` within a ball.
    :math:`\alpha = 1` is Nash-MTL; :math:`\alpha \to \infty` max-min fairness. Every task progresses, :math:`\langle
    g_i, d\rangle > 0`.

    Args:
        alpha: positive.
        variant: ``"paper"``: solved exactly. ``"released"``: ``scipy.optimize.least_squares`` from :math:`1/m`, as
            the authors' code does; how far that is from a solution is in ``last_solution.residual``.
        ridge: relative ridge that is added where no solution exists, at Pareto-stationary points;
            ``last_solution.regularised`` and the step's events say when.
        paper_scale: multiply the weights by the number of tasks, as the released code does.
        backend: where the weights are computed; see ``GramianMethod``.

    Raises:
        InvalidParameterError: ``alpha`` or ``ridge`` is not positive, or ``variant`` is neither.

    Note:
        The text uses :math:`\alpha = 1`, the released scripts 2. The update is homogeneous of degree
        :math:`(1-\alpha)/(1+\alpha)` in the gradients, so it does not follow a loss scale: unscale first, as
        ``mtl_core.step`` does.

    References:
        Ban and Ji, *Fair Resource Allocation in Multi-Task Learning*, ICML 2024, equation 6.

    Example:
        >>> import torch
        >>> FairGrad(alpha=1.0)(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([1., 1.])
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        variant: Literal["paper", "released"] = "paper",
        ridge: float = 1e-3,
        paper_scale: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(backend=backend)
        self.alpha = checks.positive("alpha", alpha)
        self.variant = checks.one_of("variant", variant, ("paper", "released"))
        self.ridge = checks.positive("ridge", ridge)
        self.paper_scale = checks.boolean("paper_scale", paper_scale)
        if self.variant == "released":
            self.on_host_only()

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        power = self.alpha / (1.0 + self.alpha)
        laws: set[Law] = set()
        if self.variant == "paper":
            laws = {
                "non_conflicting",
                "permutation",
                "homogeneous",
                "orthogonal",
                "equal_rows",
                "zero_rows",
            }
        released = Scale("m^(1/(1+α))", lambda m: float(m ** (1.0 - power)))
        own = Scale("m^(−α/(1+α))", lambda m: float(m**-power))
        return Facts(
            needs="gramian",
            homogeneity=(1.0 - self.alpha) / (1.0 + self.alpha) if self.variant == "paper" else None,
            scale=released if self.paper_scale else own,
            paper_scale=released,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Ban and Ji, ICML 2024",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        if self.variant == "paper":
            solution = fair_point(gramian, self.alpha, ridge=self.ridge)
        else:
            solution = _released(gramian, self.alpha)
        self.record(solution)
        return solution.value * len(gramian) if self.paper_scale else solution.value

    @property
    def closed_on_device(self) -> bool:
        """Whether ``solve_on_device``, as configured, has a closed form for two tasks."""
        return self.alpha == 1.0

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]``, in torch."""
        if self.variant == "released":
            return super().solve_on_device(gramian)
        weights = device.fair_point(gramian, self.alpha, ridge=self.ridge)
        return weights * len(gramian) if self.paper_scale else weights

    def augmented(self, gramian: Vector, balance: float) -> Vector:
        r"""The weights ``[m]`` with both sides weighed by the balance of the tasks, for ``IMGrad``.

        .. math:: (1 - \kappa) (G w)_i = \kappa\, w_i^{-1/\alpha}
        """
        # With w = t v and (Gv)_i = v_i^(−1/α), the equation leaves (1 − κ) t = κ t^(−1/α) for the factor t.
        factor: float = (balance / (1.0 - balance)) ** (self.alpha / (1.0 + self.alpha))
        return self.solve(gramian, None) * factor

    def augmented_on_device(self, gramian: Tensor, balance: Tensor) -> Tensor:
        """The same in torch, for a float64 Gramian and a balance without dimensions on its device."""
        return self.solve_on_device(gramian) * (balance / (1.0 - balance)) ** (self.alpha / (1.0 + self.alpha))


def _released(gramian: Vector, alpha: float) -> Solution:
    from scipy.optimize import least_squares  # only this variant pays for loading it

    m = len(gramian)
    tiny = float(np.finfo(np.float64).tiny)

    def gap(weights: Vector) -> Vector:
        # The search may touch its bound at 0, where the power is infinite.
        difference: Vector = gramian @ weights - np.maximum(weights, tiny) ** (-1.0 / alpha)
        return difference

    result = least_squares(gap, np.full(m, 1.0 / m), bounds=(0.0, np.inf))
    weights: Vector = result.x
    return Solution(weights, fair_residual(gramian, weights, alpha), int(result.nfev))
