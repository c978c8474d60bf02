"""STCH: a smooth form of the largest loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_checks import check_past_losses
from mtl_aggregators.bases.loss_method import LossMethod, positive
from mtl_aggregators.bases.parameters import match_tasks, one_per_task, weight_vector
from mtl_core import InvalidInputError, checks

__all__ = ["STCH"]


class STCH(LossMethod):
    r"""Smooth Tchebycheff scalarisation.

    .. math:: S(L) = \mu \log \sum_i \exp\bigl(w_i (L_i - z_i) / \mu\bigr)

    For :math:`\mu \to 0` it is the largest weighted distance to the ideal point :math:`z`.

    Args:
        mu: smoothing :math:`\mu > 0`.
        weights: preference :math:`w` ``[m]``, taken as it is; ``None`` for :math:`1/m` each. Unused by ``"warmup"``.
        reference: ideal point :math:`z`, one number or one per task. Unused by ``"warmup"``.
        variant: ``"paper"``: the formula. ``"warmup"``, the released code for multi-task learning: the sum of the
            logarithms up to and including epoch ``warmup_epochs``, and then
            :math:`m\,\mu \log\sum_i (L_i/\bar L_i)^{1/\mu}` with the mean losses :math:`\bar L` of that epoch. It needs
            positive losses and ``start_epoch``.
        warmup_epochs: see above; 0 averages over the first epoch.
        tasks: the tasks' names, for messages.

    Raises:
        InvalidParameterError: ``mu`` is not positive, a weight is negative or not finite, or ``warmup_epochs`` is
            negative.
        InvalidInputError: when called by ``"warmup"`` on a loss that is not positive, without ``start_epoch`` ever
            having been called, or past the warm-up on a task that was never seen in its last epoch.

    References:
        Lin et al., *Smooth Tchebycheff Scalarization for Multi-Objective Optimization*, ICML 2024, equation 6.

    Example:
        >>> import torch
        >>> losses = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> torch.autograd.grad(STCH(mu=0.5, weights=[1.0, 1.0])(losses), losses)[0]
        tensor([0.0180, 0.9820])
    """

    def __init__(
        self,
        *,
        mu: float = 1.0,
        weights: Sequence[float] | Tensor | None = None,
        reference: float | Sequence[float] | Tensor = 0.0,
        variant: Literal["paper", "warmup"] = "paper",
        warmup_epochs: int = 4,
        tasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(tasks=tasks)
        self.mu = checks.positive("mu", mu)
        self.task_weights = None if weights is None else weight_vector("weights", weights)
        self.reference = one_per_task("reference", reference)
        self.variant = checks.one_of("variant", variant, ("paper", "warmup"))
        self.warmup_epochs = int(checks.non_negative("warmup_epochs", warmup_epochs))
        self.reset()

    def reset(self) -> None:
        """Start the warm-up again."""
        self._epoch: int | None = None
        self._sums: Tensor | None = None  # [2, m]: sums and counts over the last epoch of the warm-up

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        plain = Scale("1/m²", lambda m: m**-2.0)
        warm = Scale("1", lambda m: 1.0)
        return Facts(
            needs="losses",
            homogeneity=0.0 if self.variant == "warmup" else None,
            scale=plain if self.variant == "paper" else warm,
            paper_scale=warm,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Lin et al., ICML 2024",
        )

    def start_epoch(self, epoch: int) -> None:
        """Tell that an epoch begins, counted from 0."""
        self._epoch = epoch

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        if self.variant == "warmup":
            return self._warm(losses, present)
        weights = torch.full_like(losses, 1.0 / len(losses))
        if self.task_weights is not None:
            match_tasks("weights", self.task_weights, len(losses))
            weights = self.task_weights.to(losses)
        if self.reference.ndim:
            match_tasks("reference", self.reference, len(losses))
        scaled = weights * (losses - self.reference.to(losses)) / self.mu
        # logsumexp takes the largest out first: for small μ the exponentials overflow. An absent task's is exp(−∞) = 0.
        smooth: Tensor = scaled.masked_fill(~present, float("-inf")).logsumexp(dim=0)
        return self.mu * smooth

    def _warm(self, losses: Tensor, present: Tensor) -> Tensor:
        if self._epoch is None:
            raise InvalidInputError(
                "`start_epoch` must be called at the start of every epoch for STCH(variant='warmup'), got no call. "
                "Call method.start_epoch(epoch) in the training loop, or use variant='paper'."
            )
        positive(losses, present, self.tasks, method="STCH(variant='warmup')")
        logs = torch.where(present, losses, 1.0).log()
        if self._epoch <= self.warmup_epochs:
            return logs.sum()
        if self._sums is not None:
            self._same_length(self._sums, losses)
        seen = present & False if self._sums is None else self._sums[1].to(losses.device) > 0
        if bool((present & ~seen).any()):
            raise InvalidInputError(
                f"every task must be seen in epoch {self.warmup_epochs} by STCH(variant='warmup'), got tasks without "
                f"at {(present & ~seen).nonzero().flatten().tolist()}. Start at an earlier epoch."
            )
        assert self._sums is not None
        sums, counts = self._sums.to(losses.device)
        # (L/L̄)^(1/μ) by logarithms, for the same reason.
        relative = (logs - (sums / counts).log().to(losses)) / self.mu
        smooth: Tensor = relative.masked_fill(~present, float("-inf")).logsumexp(dim=0)
        return len(losses) * self.mu * smooth

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Average the losses ``[m]`` of the warm-up's last epoch; NaN for an absent task."""
        if self.variant != "warmup" or self._epoch != self.warmup_epochs:
            return
        check_past_losses(before)
        known = before.detach().to(torch.float64)
        there = ~known.isnan()
        packed = torch.stack([torch.where(there, known, 0.0), there.to(known)])
        if self._sums is not None:
            self._same_length(self._sums, known)
            packed = packed + self._sums.to(known.device)
        self._sums = packed

    def get_extra_state(self) -> dict[str, Any]:
        """The epoch, and sums and counts of the warm-up."""
        return {"epoch": self._epoch, "sums": None if self._sums is None else self._sums.clone()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._epoch = state["epoch"]
        self._sums = None if state["sums"] is None else state["sums"].clone()
