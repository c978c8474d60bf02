r"""What a teleport optimises: :math:`L_{lora} = a\,L_t - b\,L_g`.

:math:`L_t` keeps the task losses where they were, :math:`L_g` (``mtl_teleport.sharpness``) makes the landscape
steeper, and the weights R inside it favour the tasks with small gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl_core import checks
from mtl_core.problem import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.sharpness import Sharpness

__all__ = [
    "Balance",
    "Objective",
    "Reference",
    "Units",
    "Value",
    "balance_weights",
    "drift_scale",
    "references",
    "relative_drift",
]

Balance = Literal["paper", "released", "equal"]
"""Form of the task weights R."""

Reference = Literal["batch", "loader"]
"""Whether a batch's losses are held at their own earlier values or at the mean over all probe batches."""

Units = Literal["relative", "absolute"]
"""Whether drift and gain are measured against their starting values or in units of the losses."""


def balance_weights(norms: Tensor, *, form: Balance = "paper") -> Tensor:
    r"""Task weights R, larger for smaller gradients; they sum to the number of tasks with a gradient.

    ============ ======================================================================
    ``paper``    :math:`R = m\,\mathrm{softmax}_i(\sum_j\|g_j\| / \|g_i\|)` (equation 10)
    ``released`` :math:`R_i = m (1 - \|g_i\| / \sum_j\|g_j\|)`; sums to :math:`m (m-1)`
    ``equal``    :math:`R_i = 1`
    ============ ======================================================================

    The ratio does not depend on the scale of the gradients, and the softmax is shifted by its largest argument, so
    nothing overflows for norms of any size. A task with a zero gradient has no say: its weight is 0 and it is left
    out of m.

    Args:
        norms: gradient norms ``[m]``, not negative.
        form: one of the three forms.

    Returns:
        float64 ``[m]``, not negative; 1 for a single task with a gradient, and all ones if every norm is zero.

    Raises:
        InvalidParameterError: ``form`` is none of the three.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 10.

    Example:
        >>> import torch
        >>> balance_weights(torch.tensor([3.0, 1.0]), form="released")
        tensor([0.5000, 1.5000], dtype=torch.float64)
        >>> balance_weights(torch.tensor([1e-8, 1.0])).tolist()
        [2.0, 0.0]
    """
    checks.one_of("form", form, get_args(Balance))
    norms = norms.detach().to(torch.float64)
    present = norms > 0
    count = present.sum()
    if form == "equal" or int(count) < 2:
        return torch.where(present | ~present.any(), torch.ones_like(norms), torch.zeros_like(norms))
    scaled = norms / norms.max()
    if form == "released":
        return torch.where(present, count * (1.0 - scaled / scaled.sum()), torch.zeros_like(norms))
    ratio = scaled.sum() / torch.where(present, scaled, torch.ones_like(scaled))
    ratio = torch.where(present, ratio.clamp(max=torch.finfo(torch.float64).max), torch.full_like(ratio, -torch.inf))
    return count * torch.softmax(ratio, dim=0)


def references(own: Sequence[Tensor], *, kind: Reference = "batch") -> tuple[Tensor, ...]:
    r"""The losses :math:`L_i^*` to hold, for each batch; NaN where a task is absent.

    Args:
        own: each probe batch's losses before the search, ``[m]``, NaN where a task is absent.
        kind: ``"batch"``: each batch's own losses (exact invariance). ``"loader"``: for every batch the mean over
            all of them.

    Returns:
        one tensor ``[m]`` per batch.

    Raises:
        InvalidParameterError: ``kind`` is neither.

    Example:
        >>> import torch
        >>> references([torch.tensor([1.0, 4.0]), torch.tensor([3.0, float("nan")])], kind="loader")
        (tensor([2., 4.]), tensor([2., nan]))
    """
    checks.one_of("kind", kind, get_args(Reference))
    if kind == "batch":
        return tuple(own)
    mean = torch.stack(tuple(own)).nanmean(dim=0)
    return tuple(torch.where(losses.isnan(), losses, mean) for losses in own)


def drift_scale(reference: Tensor) -> Tensor:
    r"""The size that a loss's drift is measured against, ``[m]``.

    .. math:: \max(|L_i^*|,\; 10^{-3}\,\mathrm{mean}_j |L_j^*|)

    The floor keeps one loss that is passing through zero from deciding everything.
    """
    size = reference.abs()
    floor = size.nanmean() * 1e-3
    return torch.maximum(size, torch.where(floor > 0, floor, torch.ones_like(floor)))


def relative_drift(losses: Tensor, reference: Tensor) -> Tensor:
    r"""Mean over the present tasks of :math:`|L_i - L_i^*|` against ``drift_scale``; a scalar.

    Args:
        losses: ``[m]``, NaN where a task is absent.
        reference: ``[m]``, NaN where a task is absent.
    """
    present = ~reference.isnan()
    return ((losses - reference).abs() / drift_scale(reference))[present].mean()


@dataclass(frozen=True)
class Value:
    """One evaluation of the objective.

    Attributes:
        total: :math:`a L_t - b L_g`, to be minimised.
        gain: :math:`L_g`, differentiable.
        growth: :math:`L_g` over its value at the first evaluation, detached.
        losses: the losses at this point.
    """

    total: Tensor
    gain: Tensor
    growth: Tensor
    losses: TaskLosses


class Objective:
    r"""The adapter's objective :math:`a\,L_t - b\,L_g`.

    .. math:: L_t = \frac1k \sum_i |L_i(\theta + \Delta\theta) - L_i^*|

    In relative units each term of :math:`L_t` is divided by ``drift_scale`` and :math:`L_g` by its value where the
    search began, so that the two weights mean the same whatever the scale of losses and gradients. Absolute units
    are the paper's.

    Args:
        sharpness: the estimate :math:`L_g`.
        balance: task weights R, ``[m]``.
        drift_weight: a, not negative (text 1, released code 10, both absolute).
        gain_weight: b, not negative (text γ, released code 0.5, both absolute).
        units: relative or absolute.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equations 7 and 11.
    """

    def __init__(
        self,
        sharpness: Sharpness,
        balance: Tensor,
        *,
        drift_weight: float,
        gain_weight: float,
        units: Units = "relative",
    ) -> None:
        self._sharpness = sharpness
        self._balance = balance
        self.drift_weight = checks.non_negative("drift_weight", drift_weight)
        self.gain_weight = checks.non_negative("gain_weight", gain_weight)
        self._relative = checks.one_of("units", units, get_args(Units)) == "relative"
        self._start: Tensor | None = None

    def __call__(
        self, session: AdapterSession, batch: Any, reference: Tensor, *, generator: torch.Generator | None = None
    ) -> Value:
        """Evaluate at the session's present point; the first call sets the unit of relative gain.

        Args:
            session: the problem with its adapter.
            batch: one probe batch.
            reference: its losses to hold, ``[m]``.
            generator: for random sharpness.
        """
        losses, gain = self._sharpness(session, batch, self._balance, generator=generator)
        if self._start is None:
            self._start = torch.where(gain > 0, gain, torch.ones_like(gain)).detach()
        growth = gain / self._start
        index = list(losses.index)
        values = losses.values
        change = (values - reference[index].to(values)).abs()
        if self._relative:
            change = change / drift_scale(reference)[index].to(values)
        total = self.drift_weight * change.mean() - self.gain_weight * (growth if self._relative else gain)
        return Value(total, gain, growth.detach(), losses)
