"""MoCo: tracked gradients against the bias of small batches."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.jacobian_method import LossAwareMethod, positive_losses
from mtl_aggregators.bases.parameters import same_columns, same_tasks
from mtl_aggregators.solvers.simplex import project_simplex
from mtl_core import InvalidJacobianError, checks
from mtl_core.extension import gramian_of

__all__ = ["MoCo"]


class MoCo(LossAwareMethod):
    r"""Multi-objective gradient correction: MGDA's weights by single steps, on gradients averaged over time.

    .. math::
        y_i \leftarrow y_i - \beta_t (y_i - h_i), \qquad
        w \leftarrow \Pi\bigl(w - \gamma_t (Y Y^\top + \rho I)\, w\bigr), \qquad d = Y^\top w

    with :math:`\beta_t = \beta/t^{\sigma_\beta}`, :math:`\gamma_t = \gamma/t^{\sigma_\gamma}`, :math:`y = 0` and equal
    weights at the start.

    Args:
        beta: step of the tracked gradients.
        beta_sigma: its decay.
        gamma: step of the weights.
        gamma_sigma: its decay.
        rho: regularisation of the weights.
        variant: ``"paper"``: :math:`h_i = g_i` and :math:`\Pi` the Euclidean projection on the simplex. ``"libmtl"``:
            :math:`h_i = L_i\, g_i/\|g_i\|` and :math:`\Pi` a softmax, as LibMTL has it, which is another algorithm;
            it needs positive losses.

    Raises:
        InvalidParameterError: a step is not positive, a decay or ``rho`` is negative, ``beta`` is above 1 or
            ``variant`` is neither.
        InvalidJacobianError: when called on gradients whose squares float64 does not hold (norms from 1e150 on).

    Note:
        The paper also projects :math:`y_i` on a ball of the gradients' Lipschitz constant, which is not known in
        practice and left out, as in released code. Steps of the weights depend on the size of the gradients: the method
        has no degree of homogeneity. The tracked gradients take as much memory as the Jacobian.

    References:
        Fernando et al., *Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach*, ICLR
        2023, algorithm 1.

    Example:
        >>> MoCo(beta=1.0)(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.8500, 0.5750])
    """

    has_memory = True

    def __init__(
        self,
        *,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        variant: Literal["paper", "libmtl"] = "paper",
    ) -> None:
        super().__init__()
        self.beta = checks.in_interval("beta", beta, 0.0, 1.0, "(]")
        self.beta_sigma = checks.non_negative("beta_sigma", beta_sigma)
        self.gamma = checks.positive("gamma", gamma)
        self.gamma_sigma = checks.non_negative("gamma_sigma", gamma_sigma)
        self.rho = checks.non_negative("rho", rho)
        self.variant = checks.one_of("variant", variant, ("paper", "libmtl"))
        self._steps = 0
        self._tracked: Tensor | None = None
        self.task_weights: Tensor | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        beta = self.beta
        laws: set[Law] = {"permutation", "orthogonal", "equal_rows"} if self.variant == "paper" else set()
        note = "" if self.variant == "paper" else ", for losses of 1"
        scale = Scale(f"β/m at the first step{note}", lambda m: beta / m)
        return Facts(
            needs="jacobian",
            homogeneity=None,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Fernando et al., ICLR 2023",
        )

    def combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        """The update ``[d]``."""
        wide = jacobian.float() if jacobian.dtype in (torch.float16, torch.bfloat16) else jacobian
        m = len(wide)
        if self.variant == "libmtl":
            norms = checks.row_norms(wide)
            known = positive_losses("MoCo", losses, wide).double()
            # One after the other: a loss over the norm of a tiny gradient may be no finite number.
            units = wide / torch.where(norms > 0.0, norms, 1.0).unsqueeze(1)
            wide = (units * torch.where(norms > 0.0, known, 0.0).unsqueeze(1)).to(wide.dtype)
        if self._tracked is None or self.task_weights is None:
            self._tracked = torch.zeros_like(wide)
            self.task_weights = torch.full((m,), 1.0 / m, dtype=torch.float64, device=wide.device)
        same_tasks("MoCo", len(self._tracked), m)
        same_columns("MoCo", self._tracked.shape[1], wide.shape[1])
        steps = self._steps + 1
        # Into a new tensor: a state that was saved stays as it was.
        tracked = torch.lerp(self._tracked.to(wide), wide, self.beta * steps**-self.beta_sigma)
        gramian = gramian_of(tracked)
        if gramian.is_cpu and not math.isfinite(gramian.sum().item()):
            raise InvalidJacobianError(
                "`jacobian` must have norms below 1e150 for MoCo, got a largest entry of "
                f"{float(wide.abs().max()):.6g}, whose square float64 does not hold. Scale the losses."
            )
        self._steps, self._tracked = steps, tracked
        # float64 throughout: single steps on a Gramian add up over the whole training.
        weights = self.task_weights.to(gramian)
        moved = weights - self.gamma * self._steps**-self.gamma_sigma * (gramian @ weights + self.rho * weights)
        self.task_weights = project_simplex(moved) if self.variant == "paper" else torch.softmax(moved, dim=0)
        return (self.task_weights.to(wide) @ self._tracked).to(jacobian.dtype)

    def reset(self) -> None:
        """Forget the tracked gradients and the weights."""
        self._steps = 0
        self._tracked = self.task_weights = None

    def get_extra_state(self) -> dict[str, Any]:
        """The step count, the tracked gradients and the weights."""
        return {"steps": self._steps, "tracked": self._tracked, "weights": self.task_weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._steps = int(state["steps"])
        self._tracked, self.task_weights = state["tracked"], state["weights"]
