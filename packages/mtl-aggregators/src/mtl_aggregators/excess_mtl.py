"""ExcessMTL: weights that grow with each task's estimated distance from its optimum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_aggregators.bases.parameters import same_columns, same_tasks
from mtl_core import InvalidJacobianError, checks
from mtl_core.extension import weighted_sum

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
        return weighted_sum(jacobian, self.jacobian_weights(jacobian))

    def jacobian_weights(self, jacobian: Tensor) -> Tensor:
        """The weights ``[m]``, float64, of a checked, detached Jacobian ``[m, d]``; they sum to ``m``.

        They are what the heads are trained with where these are weighted; the method moves on with each call.
        """
        m = len(jacobian)
        if self._state is None:
            weights, first, known = jacobian.new_ones(m, dtype=torch.float64), None, None
        else:
            weights, first, known = self._state
            same_tasks("ExcessMTL", len(weights), m)
            same_columns("ExcessMTL", known.shape[1], jacobian.shape[1])
        risks, total = _risks(jacobian, known)
        on_cpu = jacobian.is_cpu
        # As plain numbers, which for so few takes a third of the time of a reduction.
        if on_cpu and jacobian.dtype is torch.float64 and not 1e-120 < max(risks.tolist()) < 1e120:
            _refuse_out_of_range(jacobian)
        if first is None:
            first = risks
        elif on_cpu and min(first.tolist()) > 0.0:
            weights = self._moved(weights, risks / first)
        else:
            # A task is compared with its own first risk; one that has had no gradient until now begins with this
            # step's.
            begun = first > 0.0
            ratio = torch.where(begun, risks / first, 0.0)
            weights = self._moved(weights, ratio)
            first = torch.where(begun, first, risks)
        self._state = (weights, first, total)
        return weights.clone()  # reports hand weights to the user, who may write to them

    def _moved(self, weights: Tensor, ratio: Tensor) -> Tensor:
        # In logarithms, by softmax: exp() of a risk that has grown a thousandfold overflows.
        logits = torch.add(weights.log(), ratio, alpha=self.robust_step_size)
        return torch.softmax(logits, dim=0).mul_(len(weights))

    def reset(self) -> None:
        """Forget the gradients seen so far."""
        self._state = None

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, first risks and sums of squares."""
        return {"state": self._state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._state = state["state"]


BLOCK = 1 << 17
"""Elements worked on at a time on the CPU: what lies between gradients and risks stays in a core's cache."""
TINY = 1e-300
"""Where a coordinate never had a gradient: its risk is 0 divided by the root of this, not 0 by 0."""


def _refuse_out_of_range(jacobian: Tensor) -> None:
    # Sums of squares are remembered, so that one step cannot be computed at another scale than those before.
    largest = float(jacobian.abs().max()) if jacobian.numel() else 0.0
    if largest > 0.0:
        raise InvalidJacobianError(
            f"`jacobian` must have entries around 1e-100 to 1e100 for ExcessMTL, got a largest one of {largest:.6g}, "
            "whose square float64 does not hold. Scale the losses."
        )


def _risks(jacobian: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Excess risks ``[m]`` and the new sums of squares ``[m, d]``, float64; the known sums are left as they are."""
    m, size = jacobian.shape
    width = max(1, BLOCK // m) if jacobian.is_cpu else size
    if size <= width:
        squares = _squares(jacobian)
        total = squares + (TINY if known is None else known)
        return squares.div_(total.sqrt()).sum(dim=1), total
    total = jacobian.new_empty(m, size, dtype=torch.float64)
    risks = jacobian.new_zeros(m, dtype=torch.float64)
    for start in range(0, size, width):
        squares = _squares(jacobian[:, start : start + width])
        sums = total[:, start : start + width]
        torch.add(squares, TINY if known is None else known[:, start : start + width], out=sums)
        risks += squares.div_(sums.sqrt()).sum(dim=1)
    return risks, total


def _squares(block: Tensor) -> Tensor:
    """Squares in float64: those of tiny gradients would underflow in single precision."""
    return block.square() if block.dtype == torch.float64 else block.double().square_()
