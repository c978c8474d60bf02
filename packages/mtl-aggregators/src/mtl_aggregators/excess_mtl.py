"""ExcessMTL: weights that grow with each task's estimated distance from its optimum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_aggregators.bases.parameters import same_tasks
from mtl_core import checks

__all__ = ["ExcessMTL"]


class ExcessMTL(JacobianMethod):
    r"""Robust multi-task learning with excess risks.

    A task's excess risk is estimated by its gradient in the metric of AdaGrad, and its weight grows with that:

    .. math::
        e_i = g_i^\top \operatorname{diag}\Bigl(\sum_{s \le t} g_{i,s}^2\Bigr)^{-1/2} g_i, \qquad
        w_i \leftarrow m\,\frac{w_i \exp(\eta\, e_i / e_i^{(0)})}{\sum_j w_j \exp(\eta\, e_j / e_j^{(0)})}

    The update is :math:`\sum_i w_i g_i`; in the first step all weights are 1 and :math:`e^{(0)}` is recorded.

    Args:
        robust_step_size: :math:`\eta`.

    Raises:
        InvalidParameterError: ``robust_step_size`` is not positive.

    Note:
        Weights sum to ``m`` and initial risks are divided by, as in the released code; the paper's weights are in the
        simplex. Nothing is added under the root, so that the gradients' scale has no effect; a coordinate that never
        had a gradient has none now. The sums take as much memory as the Jacobian. A task without a gradient has
        a risk of 0.

    References:
        He et al., *Robust Multi-Task Learning with Excess Risks*, ICML 2024, algorithm 1.

    Example:
        >>> ExcessMTL()(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([2., 1.])
    """

    has_memory = True

    def __init__(self, *, robust_step_size: float = 1.0) -> None:
        super().__init__()
        self.robust_step_size = checks.positive("robust_step_size", robust_step_size)
        # Weights and first risks [m], sums of squares [m, d].
        self._state: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("1", lambda m: 1.0)
        return Facts(
            needs="jacobian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="weighted",
            laws=frozenset({"permutation", "homogeneous", "equal_rows", "zero_rows"}),
            reference="He et al., ICML 2024",
        )

    def combine(self, jacobian: Tensor) -> Tensor:
        """The update ``[d]``."""
        return (self.jacobian_weights(jacobian) @ jacobian.to(torch.float64)).to(jacobian.dtype)

    def jacobian_weights(self, jacobian: Tensor) -> Tensor:
        """The weights ``[m]``, float64, of a checked, detached Jacobian ``[m, d]``; they sum to ``m``.

        They are what the heads are trained with where these are weighted; the method moves on with each call.
        """
        # Squares of tiny gradients would underflow in single precision, and steps lose digits in half.
        wide = jacobian.to(torch.float64)
        m = len(wide)
        squares = wide.square()
        if self._state is None:
            weights, first, total = wide.new_ones(m), None, squares
        else:
            weights, first, total = self._state
            same_tasks("ExcessMTL", len(weights), m)
            total = total + squares
        # Where a coordinate never had a gradient, nothing is divided by nearly nothing.
        risks = torch.linalg.vecdot(squares, total.clamp(min=1e-300).rsqrt_())
        if first is None:
            first = risks
        else:
            known = first > 0.0
            ratio = torch.where(known, risks / first, 0.0)
            weights = m * torch.softmax(weights.log() + self.robust_step_size * ratio, dim=0)
            first = torch.where(known, first, risks)
        self._state = (weights, first, total)
        return weights

    def reset(self) -> None:
        """Forget the gradients seen so far."""
        self._state = None

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, first risks and sums of squares."""
        return {"state": self._state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._state = state["state"]
