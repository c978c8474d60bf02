"""SDMGrad: direction-oriented weights from independent batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.loss_checks import cross_gramian
from mtl_aggregators.bases.parameters import match_tasks, same_tasks, weight_vector
from mtl_aggregators.bases.three_batches import ThreeBatchMethod
from mtl_aggregators.solvers.rows import EPS
from mtl_aggregators.solvers.simplex import project_simplex
from mtl_core import checks

__all__ = ["SDMGrad"]


class SDMGrad(ThreeBatchMethod):
    r"""Stochastic direction-oriented multi-objective gradient descent.

    .. math::
        w \approx \arg\min_{w\in\Delta} \tfrac12 \|g_w + \lambda g_p\|^2, \qquad
        d = \frac{g_w + \lambda g_p}{1 + \lambda}, \qquad g_p = J^\top p

    Weights take projected steps along :math:`A w + \lambda A p` with :math:`A = J_1 J_2^\top` of two independent
    batches, which is unbiased; the update is that of a third. They start where the last step left them.

    Args:
        lambda_: pull towards the direction ``p``, non-negative; 0.3 in the released scripts.
        n_iters: projected steps.
        lr: their length, on :math:`A` divided by the square of its diagonal's mean root.
        momentum: of these steps, in [0, 1).
        preference: the direction :math:`p` ``[m]``, non-negative, scaled to sum to 1; ``None`` for :math:`1/m` each.
        paper_scale: multiply the update by the number of tasks, as the released code does.

    Raises:
        InvalidParameterError: a setting is out of its range.

    Note:
        The released supervised code keeps its three batches' gradients in one buffer, so that all three are the
        last one's, and multiplies the update by the number of tasks; LibMTL's trains the heads three times. Here the
        three differ, and heads train on the third. Buffers of the model (batch statistics) see all three.

    References:
        Xiao, Ban and Ji, *Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms*,
        NeurIPS 2023, algorithm 1.

    Example:
        >>> SDMGrad(lambda_=0.0, lr=0.1, n_iters=100).weigh(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        lambda_: float = 0.3,
        n_iters: int = 20,
        lr: float = 10.0,
        momentum: float = 0.5,
        preference: Sequence[float] | Tensor | None = None,
        paper_scale: bool = False,
    ) -> None:
        super().__init__()
        self.lambda_ = checks.non_negative("lambda_", lambda_)
        self.n_iters = checks.positive_int("n_iters", n_iters)
        self.lr = checks.positive("lr", lr)
        self.momentum = checks.in_interval("momentum", momentum, 0.0, 1.0, "[)")
        self.paper_scale = checks.boolean("paper_scale", paper_scale)
        self.preference: Tensor | None = None
        if preference is not None:
            vector = weight_vector("preference", preference)
            self.preference = vector / vector.sum()
        self._weights: Tensor | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        laws: set[Law] = {"homogeneous", "orthogonal", "equal_rows"}
        if not self.paper_scale:
            laws |= {"simplex"}
        if self.preference is None:
            laws |= {"permutation"}
        released = Scale("1", lambda m: 1.0)
        return Facts(
            needs="batches",
            homogeneity=1.0,
            scale=released if self.paper_scale else Scale("1/m", lambda m: 1.0 / m),
            paper_scale=released,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Xiao, Ban and Ji, NeurIPS 2023",
        )

    def weigh(self, cross: Tensor) -> Tensor:
        """The weights ``[m]`` of the update; they sum to 1, or with ``paper_scale`` to m.

        Raises:
            InvalidJacobianError: ``cross`` is not a finite square matrix.
            InvalidInputError: the number of tasks changed.
        """
        cross = cross_gramian(cross)
        m = len(cross)
        if self.preference is None:
            preference = cross.new_full((m,), 1.0 / m)
        else:
            match_tasks("preference", self.preference, m)
            preference = self.preference
        weights = cross.new_full((m,), 1.0 / m) if self._weights is None else self._weights
        same_tasks("SDMGrad", len(weights), m)
        # Products of two batches' gradients may be negative even on the diagonal.
        size = float(cross.diagonal().clamp(min=0.0).sqrt().mean()) ** 2
        if size > 0.0:
            scaled = cross / size
            sizes = scaled.abs()
            velocity = torch.zeros_like(weights)
            for _ in range(self.n_iters):
                point = weights + self.lambda_ * preference
                slope = scaled @ point
                # Steps this long multiply a difference tenfold each: where the slope vanishes, as where equal weights
                # are stationary, its rounding alone would end in a corner of the simplex that the order decides.
                slope = torch.where(slope.abs() <= 16.0 * EPS * m * (sizes @ point), 0.0, slope)
                velocity = self.momentum * velocity + slope
                weights = project_simplex(weights - self.lr * velocity)
        self._weights = weights
        mixed: Tensor = (weights + self.lambda_ * preference) / (1.0 + self.lambda_)
        return mixed * m if self.paper_scale else mixed

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
