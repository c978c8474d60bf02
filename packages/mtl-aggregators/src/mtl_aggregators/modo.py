"""MoDo: one unbiased step of the weights per step of the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_checks import cross_gramian
from mtl_aggregators.bases.parameters import same_tasks
from mtl_aggregators.bases.three_batches import ThreeBatchMethod
from mtl_aggregators.solvers.simplex import project_simplex
from mtl_core import checks

__all__ = ["MoDo"]


class MoDo(ThreeBatchMethod):
    r"""Multi-objective gradient with double sampling.

    .. math:: w \leftarrow \Pi_\Delta\bigl(w - \gamma (J_1 J_2^\top w + \rho w)\bigr), \qquad d = J_3^\top w

    with the Jacobians of three independent batches. Weights start equal.

    Args:
        gamma: step of the weights, positive.
        rho: their regularisation, non-negative.

    Raises:
        InvalidParameterError: a setting is out of its range.

    Note:
        Steps of the weights depend on the size of the gradients: the method has no degree of homogeneity.

    References:
        Chen et al., *Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
        Conflict-Avoidance*, NeurIPS 2023, algorithm 1.

    Example:
        >>> import torch
        >>> MoDo(gamma=0.1, rho=0.0).weigh(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        tensor([0.5750, 0.4250], dtype=torch.float64)
    """

    def __init__(self, *, gamma: float = 1e-3, rho: float = 0.1) -> None:
        super().__init__()
        self.gamma = checks.positive("gamma", gamma)
        self.rho = checks.non_negative("rho", rho)
        self._weights: Tensor | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="batches",
            homogeneity=None,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset({"permutation", "orthogonal", "simplex", "equal_rows"}),
            reference="Chen et al., NeurIPS 2023",
        )

    def weigh(self, cross: Tensor) -> Tensor:
        """The weights ``[m]`` of the update, in the simplex.

        Raises:
            InvalidJacobianError: ``cross`` is not a finite square matrix.
            InvalidInputError: the number of tasks changed.
        """
        cross = cross_gramian(cross)
        m = len(cross)
        # One projected gradient step per training step, not a subproblem that is solved: the mean over the training
        # removes the noise of the two batches.
        weights = cross.new_full((m,), 1.0 / m) if self._weights is None else self._weights
        same_tasks("MoDo", len(weights), m)
        self._weights = project_simplex(weights - self.gamma * (cross @ weights + self.rho * weights))
        return self._weights.clone()  # reports hand weights to the user, who may write to them

    def reset(self) -> None:
        """Forget the weights."""
        self._weights = None

    def get_extra_state(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": self._weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        # Weights are computed on the CPU, wherever a checkpoint was loaded to.
        self._weights = None if state["weights"] is None else state["weights"].cpu()
