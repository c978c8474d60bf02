"""Nash-MTL: the bargaining solution."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.periodic_weights import HeldWeights
from mtl_aggregators.solvers import device, fair_point
from mtl_aggregators.solvers.device.rows import Backend
from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["NashMTL"]


class NashMTL(GramianMethod):
    r"""The Nash bargaining solution: positive weights inversely proportional to each task's progress.

    .. math:: (G w)_i = 1 / w_i, \qquad w > 0

    The update maximises :math:`\sum_i \log \langle g_i, d\rangle` within a ball. Its length is :math:`\sqrt m`
    whatever the gradients' norms, and rescaling a task's loss does not change it.

    Args:
        solver: ``"newton"``: the equivalent strictly convex problem, solved exactly. ``"ccp"``: the paper's
            convex–concave procedure by ``cvxpy``, for reference; needs ``mtl-aggregators[cvxpy]``.
        update_weights_every: compute weights in every k-th step and reuse them between. The count and the weights are
            part of ``state_dict()``.
        ridge: relative ridge that is added where no solution exists, at Pareto-stationary points;
            ``last_solution.regularised`` and the step's events say when.
        paper_scale: the released code's scale, which is the default's too; it changes nothing.
        backend: where the weights are computed; see ``GramianMethod``.

    Raises:
        InvalidParameterError: ``update_weights_every`` is not a whole number of at least 1, ``ridge`` is not
            positive, or ``solver`` is neither.
        MissingExtraError: ``solver="ccp"`` without ``cvxpy``.

    Note:
        Released code falls back to the weights of before, at first equal ones, when its solver fails; here a failure is
        a ``SolverError``. It divides the Gramian by its Frobenius norm and hands that norm to its programs, whose
        solution is that of the Gramian itself, at any scale. Only its stopping rule forgets the norm: where weights of
        1, its start, solve the divided equations, as for equal gradients, it stops there at once. Its clipping of the
        update to norm 1 is ``mtl_core.step(..., max_norm=1.0)``.

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, claim 3.1 and section 3.2.

    Example:
        >>> import torch
        >>> NashMTL()(torch.tensor([[4.0, 0.0], [0.0, 0.1]]))
        tensor([1., 1.])
    """

    def __init__(
        self,
        *,
        solver: Literal["newton", "ccp"] = "newton",
        update_weights_every: int = 1,
        ridge: float = 1e-3,
        paper_scale: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(backend=backend)
        self.solver = checks.one_of("solver", solver, ("newton", "ccp"))
        self._held = HeldWeights("update_weights_every", update_weights_every, "NashMTL")
        self.ridge = checks.positive("ridge", ridge)
        self.paper_scale = checks.boolean("paper_scale", paper_scale)
        # Neither has anything to do on the device: CVXPY works on the host, and so are weights kept between two solves.
        if solver == "ccp" or self.update_weights_every > 1:
            self.on_host_only()
        if solver == "ccp":
            from mtl_aggregators.nash_ccp import require_cvxpy

            require_cvxpy()

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        """Whether weights of earlier steps are used again."""
        return self._held.every > 1

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        laws: set[Law] = set()
        if self.update_weights_every == 1:
            laws = {
                "non_conflicting",
                "permutation",
                "homogeneous",
                "orthogonal",
                "equal_rows",
                "zero_rows",
            }
        scale = Scale("m^(−1/2)", lambda m: float(m**-0.5))
        return Facts(
            needs="gramian",
            homogeneity=0.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="weighted",
            laws=frozenset(laws),
            reference="Navon et al., ICML 2022",
        )

    @property
    def update_weights_every(self) -> int:
        """How many steps the weights last."""
        return self._held.every

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        return self._held.get(gramian, lambda: self._bargain(gramian))

    def _bargain(self, gramian: Vector) -> Vector:
        if self.solver == "newton":
            solution = fair_point(gramian, 1.0, ridge=self.ridge)
        else:
            from mtl_aggregators.nash_ccp import convex_concave

            solution = convex_concave(gramian, ridge=self.ridge)
        self.record(solution)
        return solution.value

    @property
    def closed_on_device(self) -> bool:
        """Whether ``solve_on_device``, as configured, has a closed form for two tasks."""
        return True

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]``, in torch."""
        if self.solver == "ccp" or self.update_weights_every > 1:
            return super().solve_on_device(gramian)
        return device.fair_point(gramian, 1.0, ridge=self.ridge)

    def augmented(self, gramian: Vector, balance: float) -> Vector:
        r"""The weights ``[m]`` with both sides weighed by the balance of the tasks, for ``IMGrad``.

        .. math:: (1 - \kappa) (G w)_i = \kappa / w_i
        """
        # As FairGrad's with α = 1.
        factor: float = (balance / (1.0 - balance)) ** 0.5
        return self._bargain(gramian) * factor

    def augmented_on_device(self, gramian: Tensor, balance: Tensor) -> Tensor:
        """The same in torch, for a float64 Gramian and a balance without dimensions on its device."""
        return self.solve_on_device(gramian) * (balance / (1.0 - balance)) ** 0.5

    def reset(self) -> None:
        """Forget the weights that are being reused."""
        self._held.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The step count and the weights in use."""
        return self._held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._held.load(state)
