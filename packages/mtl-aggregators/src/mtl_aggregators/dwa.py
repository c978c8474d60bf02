"""DWA: weights from how fast each loss falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_checks import check_past_losses
from mtl_aggregators.bases.loss_method import LossMethod
from mtl_core import InvalidInputError, checks

__all__ = ["DWA"]


class DWA(LossMethod):
    r"""Dynamic weight average: a task whose loss falls slowly gains weight.

    .. math::
        S(L) = \sum_i \lambda_i L_i, \qquad \lambda_i = m\, \mathrm{softmax}_i(r_i / T), \qquad
        r_i = \bar L_i^{(k-1)} / \bar L_i^{(k-2)}

    with means :math:`\bar L` over the last two epochs, or over the last two windows of steps. Before there are two of
    them all weights are 1.

    Args:
        variant: ``"epoch"``, the paper's: the training loop must call ``start_epoch``, or ``"window"``.
        window: steps per window; ignored by ``"epoch"``.
        temperature: :math:`T > 0`; large values even the weights out.
        paper_scale: with ``"window"``, the mean of the weighted losses instead of their sum, as the released code of
            that variant has it; that of ``"epoch"`` is the sum.

    Raises:
        InvalidParameterError: ``temperature`` is not positive, ``window`` is not a whole number of at least 1, or
            ``variant`` is neither.
        InvalidInputError: when called by ``"epoch"`` without ``start_epoch`` ever having been called.

    Note:
        The windows of released code start out filled with ones, so that weights after 26 steps rest on them; here
        weights stay 1 until two windows are full, and the losses of a step count from the next step on. The means
        leave out the batches in which a task is absent. A task without both means has the ratio 1.

    References:
        Liu, Johns and Davison, *End-to-End Multi-Task Learning with Attention*, CVPR 2019, equation 7.

    Example:
        >>> import torch
        >>> method = DWA(variant="window", window=1)
        >>> for losses in ([1.0, 1.0], [1.0, 0.5]):
        ...     method.after_step(torch.tensor(losses), lambda: None)
        >>> losses = torch.ones(2, requires_grad=True)
        >>> torch.autograd.grad(method(losses), losses)[0]
        tensor([1.1244, 0.8756])
    """

    def __init__(
        self,
        *,
        variant: Literal["epoch", "window"] = "epoch",
        window: int = 25,
        temperature: float = 2.0,
        paper_scale: bool = False,
    ) -> None:
        super().__init__()
        self.variant = checks.one_of("variant", variant, ("epoch", "window"))
        self.window = checks.positive_int("window", window)
        self.temperature = checks.positive("temperature", temperature)
        self.paper_scale = checks.boolean("paper_scale", paper_scale)
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._epoch: int | None = None
        self._sums: Tensor | None = None  # [2, m]: sums and counts of the running epoch
        self._means: list[Tensor] = []  # of the last two epochs, the later one last
        self._recent: list[Tensor] = []  # losses of the last 2 * window steps

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        one, mean = Scale("1", lambda m: 1.0), Scale("1/m", lambda m: 1.0 / m)
        released = mean if self.variant == "window" else one
        return Facts(
            needs="losses",
            homogeneity=1.0,
            scale=released if self.paper_scale else one,
            paper_scale=released,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Liu et al., CVPR 2019",
        )

    def start_epoch(self, epoch: int) -> None:
        """Tell that an epoch begins, counted from 0; the same epoch may be told again."""
        # A run that resumes within an epoch tells it again.
        if epoch != self._epoch and self._sums is not None:
            sums, counts = self._sums
            # 0/0 for a task that the whole epoch lacked: NaN, which becomes the ratio 1 below.
            self._means = [*self._means, sums / counts][-2:]
            self._sums = None
        self._epoch = epoch

    def task_weights(self, losses: Tensor) -> Tensor:
        """The weights ``[m]`` in use, float64."""
        pair = self._means
        if self.variant == "window":
            full = len(self._recent) == 2 * self.window
            halves = (self._recent[: self.window], self._recent[self.window :])
            pair = [torch.stack(half).nanmean(dim=0) for half in halves] if full else []
        if len(pair) < 2:
            return torch.ones(len(losses), dtype=torch.float64, device=losses.device)
        before, now = (mean.to(losses.device) for mean in pair)
        self._same_length(now, losses)
        ratio = torch.nan_to_num(now / before, nan=1.0)
        return len(losses) * (ratio / self.temperature).softmax(dim=0)

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        if self.variant == "epoch" and self._epoch is None:
            raise InvalidInputError(
                "`start_epoch` must be called at the start of every epoch for DWA(variant='epoch'), got no call. Call "
                "method.start_epoch(epoch) in the training loop, or use variant='window'."
            )
        total = torch.where(present, losses * self.task_weights(losses).to(losses), 0.0).sum()
        return total / len(losses) if self.paper_scale and self.variant == "window" else total

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Remember the losses ``[m]`` of the step, NaN for an absent task."""
        check_past_losses(before)
        known = before.detach().to(torch.float64)
        if self.variant == "window":
            if self._recent:
                self._same_length(self._recent[-1], known)
            self._recent = [*self._recent, known.clone()][-2 * self.window :]
            return
        there = ~known.isnan()
        packed = torch.stack([torch.where(there, known, 0.0), there.to(known)])
        if self._sums is not None:
            self._same_length(self._sums, known)
            packed = packed + self._sums.to(known.device)
        self._sums = packed

    def get_extra_state(self) -> dict[str, Any]:
        """Epoch, sums and means, or the losses of the windows."""
        return {
            "epoch": self._epoch,
            "sums": None if self._sums is None else self._sums.clone(),
            "means": [mean.clone() for mean in self._means],
            "recent": torch.stack(self._recent) if self._recent else None,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._epoch = state["epoch"]
        self._sums = None if state["sums"] is None else state["sums"].clone()
        self._means = [mean.clone() for mean in state["means"]]
        self._recent = [] if state["recent"] is None else list(state["recent"].clone())
