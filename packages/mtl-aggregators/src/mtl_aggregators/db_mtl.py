"""DB-MTL: logarithms of the losses, and smoothed gradients brought to one length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.jacobian_method import LossAwareMethod, positive_losses
from mtl_aggregators.bases.parameters import same_columns, same_tasks
from mtl_core import checks

__all__ = ["DBMTL"]


class DBMTL(LossAwareMethod):
    r"""Dual balancing: the loss scale is removed by logarithms, the gradient scale by a common length.

    .. math::
        \hat g_i \leftarrow \beta_t \hat g_i + (1 - \beta_t) \nabla \log L_i, \qquad
        d = \max_j \|\hat g_j\| \sum_i \frac{\hat g_i}{\|\hat g_i\|}, \qquad \beta_t = \beta / t^{\sigma}

    Args:
        beta: how much of the running gradient is kept.
        beta_sigma: :math:`\sigma`, how fast that decays.
        log_losses: take the gradients of the logarithms, :math:`g_i / L_i`, which needs positive losses. ``False`` for
            gradients that are those of logarithms already.

    Raises:
        InvalidParameterError: ``beta`` is not in [0, 1), or ``beta_sigma`` is negative.

    Note:
        With ``heads="unit"`` each head follows its loss itself; in the released code it follows the logarithm, as in
        ``log_transform(DBMTL(log_losses=False))``. No constant is added to losses and norms. The running gradients take
        as much memory as the Jacobian. A task without a gradient, now and before, adds nothing.

    References:
        Lin et al., *Dual-Balancing for Multi-Task Learning*, 2023, algorithm 1.

    Example:
        >>> method = DBMTL(beta=0.0)
        >>> method(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), losses=torch.tensor([2.0, 1.0]))
        tensor([2., 2.])
    """

    has_memory = True

    def __init__(self, *, beta: float = 0.9, beta_sigma: float = 0.0, log_losses: bool = True) -> None:
        super().__init__()
        self.beta = checks.in_interval("beta", beta, 0.0, 1.0, "[)")
        self.beta_sigma = checks.non_negative("beta_sigma", beta_sigma)
        self.log_losses = checks.boolean("log_losses", log_losses)
        self._steps = 0
        self._running: Tensor | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        first = 1.0 - self.beta
        laws: set[Law] = set()
        if not self.log_losses:
            laws |= {"permutation", "homogeneous", "orthogonal", "equal_rows", "zero_rows"}
        scale = Scale("1 − β at the first step" + (", for losses of 1" if self.log_losses else ""), lambda m: first)
        return Facts(
            needs="jacobian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Lin et al., 2023",
        )

    def combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        """The update ``[d]``."""
        wide = jacobian.float() if jacobian.dtype in (torch.float16, torch.bfloat16) else jacobian
        if self.log_losses:
            wide = wide / positive_losses("DBMTL", losses, wide).unsqueeze(1)
        if self._running is None:
            self._running = torch.zeros_like(wide)
        same_tasks("DBMTL", len(self._running), len(wide))
        same_columns("DBMTL", self._running.shape[1], wide.shape[1])
        self._steps += 1
        # The step counts from 1.
        kept = self.beta * self._steps**-self.beta_sigma
        # kept · running + (1 − kept) · new, in one pass and into a new tensor, so that saved states stay as they were.
        self._running = torch.lerp(wide, self._running.to(wide), kept)
        norms = checks.row_norms(self._running)
        zero = norms == 0.0
        norms = torch.where(zero, 1.0, norms)
        factors = torch.where(zero, 0.0, norms.max() / norms)
        if wide.is_cpu and float(factors.max()) <= torch.finfo(wide.dtype).max:
            return (factors.to(wide) @ self._running).to(jacobian.dtype)
        # Beside a gradient of 1e-39 the longest one is so many times as long that the factor is infinite in single
        # precision. Its root is not, and is applied twice. An accelerator is not asked which case it is.
        roots = torch.where(zero, 0.0, norms.max().sqrt() / norms.sqrt())
        running = self._running.double() if wide.is_cpu else self._running
        roots = roots.to(running)
        return (roots @ (roots.unsqueeze(1) * running)).to(jacobian.dtype)

    def reset(self) -> None:
        """Forget the running gradients."""
        self._steps = 0
        self._running = None

    def get_extra_state(self) -> dict[str, Any]:
        """The step count and the running gradients."""
        return {"steps": self._steps, "running": self._running}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._steps, self._running = int(state["steps"]), state["running"]
