"""ExcessMTL: weights that grow with each task's estimated distance from its optimum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_aggregators.bases.parameters import same_columns, same_tasks
from mtl_core import InvalidJacobianError, checks
from mtl_core.extension import called_tasks, weighted_sum

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
        had a gradient has none now. The sums take as much memory as the Jacobian; for gradients with a norm
        below 1e-9 or above 1e9, and on a device, as much as in float64. A task without a gradient has a risk of 0.

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
        risks, total = _risks(jacobian, known, _dtype(jacobian, known))
        if first is None:
            first = risks
        # As plain numbers, which for so few takes a third of the time of a reduction.
        elif jacobian.is_cpu and min(first.tolist()) > 0.0:
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


BLOCK = 1 << 19
"""Bytes worked on at a time on the CPU: three times as many stay in a core's cache, and a block of them is small enough
for the allocator to hand it out again, not to fetch zeroed pages for it."""
TINY = {torch.float32: 1e-37, torch.float64: 1e-300}
"""Where a coordinate never had a gradient: its risk is 0 times the inverse root of this, not 0 by 0."""
SINGLE, DOUBLE = 1e9, 1e120
"""How large the norm of a task's gradient, or its inverse, may be for sums of squares in float32 and in float64."""


def _dtype(jacobian: Tensor, known: Tensor | None) -> torch.dtype:
    """What the sums of squares are made in: once they are in float64 they stay there.

    A sum in float32 loses the entries that are 1e-10 of a task's norm or less, which add nothing to its risk; it may
    not lose a whole task, nor overflow.
    """
    if not jacobian.is_cpu:
        return torch.float64  # a look at the entries would have to wait for the device
    wide = jacobian if jacobian.dtype.itemsize >= 4 else jacobian.float()
    squares = torch.linalg.vecdot(wide, wide).tolist()
    is_single = wide.dtype is torch.float32 and (known is None or known.dtype is torch.float32)
    limit = (SINGLE if is_single else DOUBLE) ** 2
    if all(1.0 / limit < square < limit for square in squares):
        return torch.float32 if is_single else torch.float64
    # A square of 0 may be that of a task without a gradient, or one that the dtype does not hold.
    norms = {row: norm for row, norm in enumerate(checks.row_norms(jacobian).tolist()) if norm > 0.0}
    if is_single and all(1.0 / SINGLE < norm < SINGLE for norm in norms.values()):
        return torch.float32
    # Sums are remembered, so that one step cannot be computed at another scale than those before.
    wrong = {row: norm for row, norm in norms.items() if not 1.0 / DOUBLE < norm < DOUBLE}
    if wrong:
        called = called_tasks(len(jacobian))
        found = ", ".join(f"{norm:.6g} for {called[row]!r}" for row, norm in wrong.items())
        raise InvalidJacobianError(
            f"`jacobian` must have rows with norms around 1e-100 to 1e100 for ExcessMTL, got {found}, whose square "
            "float64 does not hold. Scale the losses of these tasks."
        )
    return torch.float64


def _risks(jacobian: Tensor, known: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Excess risks ``[m]`` and the new sums of squares ``[m, d]``; the known sums are left as they are."""
    m, size = jacobian.shape
    if known is None:
        known = torch.full((1, 1), TINY[dtype], dtype=dtype, device=jacobian.device).expand(m, size)
    if known.dtype is not dtype:
        # Where there never was a gradient, there is none in wider numbers either: not 1e-37 of one.
        known = known.to(dtype).masked_fill(known == TINY[known.dtype], TINY[dtype])
    width = BLOCK // dtype.itemsize
    if m * size <= width or not jacobian.is_cpu:
        return _block_risks(jacobian, known)
    total = jacobian.new_empty(m, size, dtype=dtype)
    risks = jacobian.new_zeros(m, dtype=torch.float64)
    # Whole rows, or parts of a single one: blocks of columns are not contiguous, and take up to three times as long.
    height = max(1, width // size)
    for top in range(0, m, height):
        rows = slice(top, top + height)
        for left in range(0, size, width):
            block = (rows, slice(left, left + width))
            risks[rows] += _block_risks(jacobian[block], known[block], out=total[block])[0]
    return risks, total


def _block_risks(block: Tensor, known: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same for some columns; the sums are written to ``out`` where that is given."""
    wide = block.to(known.dtype)
    total = torch.addcmul(known, wide, wide, out=out)
    return torch.linalg.vecdot(total.rsqrt().mul_(wide), wide), total
