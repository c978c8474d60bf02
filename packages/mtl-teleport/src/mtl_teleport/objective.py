r"""What a teleport optimises: :math:`L_{lora} = a\,L_t - b\,L_g + c\,L_c`.

:math:`L_t` keeps the task losses where they were, :math:`L_g` (``mtl_teleport.sharpness``) makes the landscape
steeper, the weights R inside it favour the tasks with small gradients, and :math:`L_c`, left out by default, asks for
less conflict in so many words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl_core import TaskLosses, checks
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.sharpness import Sharpness, Slopes, flat

__all__ = [
    "Balance",
    "Objective",
    "Reference",
    "Units",
    "Value",
    "balance_weights",
    "conflict",
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


def conflict(session: AdapterSession, point: Mapping[str, Tensor], losses: TaskLosses) -> Tensor:
    r"""How much the tasks conflict with their mean.

    .. math:: L_c = \tfrac1k \sum_i \max(0, -\cos\varphi_{i0}), \qquad g_0 = \tfrac1k \sum_i g_i

    Zero, with zero derivative, where no task conflicts. A task with a zero gradient has no say.

    Args:
        session: the problem with its adapter.
        point: from ``session.parameters()``.
        losses: the losses there.

    Returns:
        a scalar in [0, 1], differentiable by the adapter through second derivatives of the model.
    """
    rows = torch.stack(
        [flat(row) for row in session.differentiate_tasks(losses, list(point.values()), create_graph=True)]
    )
    mean = rows.mean(dim=0)
    inner, squares = rows @ mean, rows.square().sum(dim=1) * mean.square().sum()
    there = squares > 0
    cosines = inner / torch.where(there, squares, torch.ones_like(squares)).sqrt()
    return torch.where(there, (-cosines).clamp(min=0.0), torch.zeros_like(cosines)).mean()


@dataclass(frozen=True)
class Value:
    """One evaluation of the objective.

    Attributes:
        total: :math:`a L_t - b L_g + c L_c`, to be minimised.
        gain: :math:`L_g`, differentiable.
        growth: :math:`L_g` over its value at the first evaluation, detached.
        losses: the losses at this point.
    """

    total: Tensor
    gain: Tensor
    growth: Tensor
    losses: TaskLosses


class Objective:
    r"""The adapter's objective :math:`a\,L_t - b\,L_g + c\,L_c`.

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
        conflict_weight: c, not negative; 0 leaves the term out.

    Note:
        :math:`L_c` (see ``conflict``) is beyond the paper. It costs one differentiable backward pass per task.

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
        conflict_weight: float = 0.0,
    ) -> None:
        self._sharpness = sharpness
        self._balance = balance
        self.drift_weight = checks.non_negative("drift_weight", drift_weight)
        self.gain_weight = checks.non_negative("gain_weight", gain_weight)
        self.conflict_weight = checks.non_negative("conflict_weight", conflict_weight)
        self._relative = checks.one_of("units", units, get_args(Units)) == "relative"
        self._start: Tensor | None = None

    @property
    def is_repeatable(self) -> bool:
        """Whether two points of one batch can be compared by the sharpness alone."""
        return not self._sharpness.is_random and self.gain_weight > 0 and self.conflict_weight == 0

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
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        gain = self._sharpness.gain(session, batch, point, losses, self._balance, generator=generator)
        growth = gain / self._unit(gain)
        index = list(losses.index)
        values = losses.values
        change = (values - reference[index].to(values)).abs()
        if self._relative:
            change = change / drift_scale(reference)[index].to(values)
        total = self.drift_weight * change.mean() - self.gain_weight * (growth if self._relative else gain)
        if self.conflict_weight > 0:
            total = total + self.conflict_weight * conflict(session, point, losses)
        return Value(total, gain, growth.detach(), losses)

    def slopes(
        self,
        session: AdapterSession,
        batch: Any,
        point: Mapping[str, Tensor],
        losses: TaskLosses,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Slopes, Tensor]:
        """What a projected search climbs, :math:`b L_g - c L_c`, and the growth of :math:`L_g` since the first call.

        Args:
            session: the problem with its adapter.
            batch: one probe batch.
            point: from ``session.parameters()``.
            losses: its losses there.
            generator: for random sharpness.
        """
        # The conflict term first: its derivatives need the graph that the sharpness's last pass may free.
        against: Tensor | None = None
        if self.conflict_weight > 0:
            value = conflict(session, point, losses)
            against = flat(session.differentiate(value, session.trainable, retain_graph=True))
        found = self._sharpness.slopes(session, batch, point, losses, self._balance, generator=generator)
        unit = self._unit(found.gain)
        if against is None:
            return found, found.gain / unit
        weight = self.gain_weight / (unit if self._relative else torch.ones_like(unit))

        def directions() -> tuple[Tensor, Tensor]:
            upward, rows = found.directions()
            return weight.to(upward) * upward - self.conflict_weight * against, rows

        return Slopes(found.gain, directions, found.gramian), found.gain / unit

    def _unit(self, gain: Tensor) -> Tensor:
        """The sharpness where the search began; the first call sets it."""
        if self._start is None:
            self._start = torch.where(gain > 0, gain, torch.ones_like(gain)).detach()
        return self._start
