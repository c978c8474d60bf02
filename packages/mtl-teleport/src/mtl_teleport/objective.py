r"""What a teleport optimises: :math:`L_{lora} = a\,L_t - b\,L_g + c\,L_c`.

:math:`L_t` keeps the task losses where they were, :math:`L_g` (``mtl_teleport.sharpness``) makes the landscape
steeper, the weights R inside it favour the tasks with small gradients, and :math:`L_c`, left out by default, asks for
less conflict in so many words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl_core import checks
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.drift import drift_scale
from mtl_teleport.sharpness import Point, Sharpness, Slopes, flat

__all__ = [
    "Balance",
    "Objective",
    "Units",
    "Value",
    "balance_weights",
    "conflict",
]

Balance = Literal["paper", "released", "equal"]
"""Form of the task weights R."""

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
    # Relative to the largest, so that no sum overflows.
    scaled = norms / norms.max()
    if form == "released":
        return torch.where(present, count * (1.0 - scaled / scaled.sum()), torch.zeros_like(norms))
    # One in place of a zero norm: its weight is taken away below, and a division by zero would make the softmax NaN.
    ratio = scaled.sum() / torch.where(present, scaled, torch.ones_like(scaled))
    ratio = torch.where(present, ratio.clamp(max=torch.finfo(torch.float64).max), torch.full_like(ratio, -torch.inf))
    return count * torch.softmax(ratio, dim=0)


def conflict(point: Point) -> Tensor:
    r"""How much the tasks conflict with their mean.

    .. math:: L_c = \tfrac1k \sum_i \max(0, -\cos\varphi_{i0}), \qquad g_0 = \tfrac1k \sum_i g_i

    Zero, with zero derivative, where no task conflicts. A task with a zero gradient has no say.

    Args:
        point: where.

    Returns:
        a scalar in [0, 1], differentiable by the adapter through second derivatives of the model.
    """
    session = point.session
    rows = torch.stack(
        [
            flat(row)
            for row in session.each_task_gradient(point.losses, point.tensors, at=point.values, create_graph=True)
        ]
    )
    # Over the largest entry, held: cosines have no scale, and a product of two squares has four times the losses'.
    rows = rows / _or_one(rows.detach().abs().max())
    mean = rows.mean(dim=0)
    inner, squares = rows @ mean, rows.square().sum(dim=1) * mean.square().sum()
    # The root of zero has an infinite derivative, which times zero is NaN.
    there = squares > 0
    cosines = inner / torch.where(there, squares, torch.ones_like(squares)).sqrt()
    return torch.where(there, (-cosines).clamp(min=0.0), torch.zeros_like(cosines)).mean()


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))


@dataclass(frozen=True)
class Value:
    """One evaluation of the objective.

    Attributes:
        total: :math:`a L_t - b L_g + c L_c`, to be minimised; detached.
        gain: :math:`L_g`, detached.
        growth: :math:`L_g` over its value at the first evaluation.
        losses: the losses ``[m]`` at this point, detached, NaN where a task is absent.
        gradient: gives the gradient ``[p]`` of ``total`` by the adapter's tensors; to be called once at most.
    """

    total: Tensor
    gain: Tensor
    growth: Tensor
    losses: Tensor
    gradient: Callable[[], Tensor]


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
        hold_gain: whether a projected search holds :math:`L_g` where it is, as it holds the losses, and climbs
            :math:`-L_c` alone.

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
        hold_gain: bool = False,
    ) -> None:
        self._sharpness = sharpness
        self._hold_gain = hold_gain
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

    def point(self, session: AdapterSession, batch: Any, *, generator: torch.Generator | None = None) -> Point:
        """The session's present point on a batch, evaluated.

        Args:
            session: the problem with its adapter.
            batch: one probe batch.
            generator: for random sharpness.
        """
        return Point.of(session, batch, self._balance, generator=generator)

    def gain(self, point: Point) -> Tensor:
        """:math:`L_g` at a point, detached."""
        return self._sharpness.estimate(point).gain

    def __call__(self, point: Point, reference: Tensor) -> Value:
        """Evaluate at a point; the first call sets the unit of relative gain.

        Args:
            point: where.
            reference: the losses to hold, ``[m]``.
        """
        # The conflict term first: its derivatives need the graph that the sharpness's last pass frees.
        against, amount = self._conflict(point)
        estimate = self._sharpness.estimate(point)
        gain = estimate.gain
        growth = gain / self._unit(gain)
        index = list(point.losses.index)
        values = point.losses.values.detach()
        change = values - reference[index].to(values)
        scale = drift_scale(reference)[index].to(values) if self._relative else torch.ones_like(values)
        weight = self.gain_weight / (self._unit(gain) if self._relative else torch.ones_like(gain))
        total = self.drift_weight * (change.abs() / scale).mean() - (weight * gain).to(values) + amount

        def gradient() -> Tensor:
            # The derivative of |L_i − L_i*|; 0 where a loss has not moved, as at the first step.
            by_loss = self.drift_weight * change.sign() / scale / len(index)
            found = estimate.gradient(by_loss, -weight)
            return found if against is None else found + self.conflict_weight * against

        return Value(total, gain, growth, point.losses.full(math.nan).detach(), gradient)

    def slopes(self, point: Point) -> tuple[Slopes, Tensor]:
        """What a projected search climbs, :math:`b L_g - c L_c`, and the growth of :math:`L_g` since the first call.

        Args:
            point: where.
        """
        against, _ = self._conflict(point)
        found = self._sharpness.slopes(point)
        unit = self._unit(found.gain)
        if against is None:
            return found, found.gain / unit
        weight = self.gain_weight / (unit if self._relative else torch.ones_like(unit))

        def directions() -> tuple[Tensor, Tensor]:
            upward, rows = found.directions()
            if self._hold_gain:
                # One more constraint: to first order the gain stays, too.
                return -self.conflict_weight * against, torch.cat([rows, upward.to(rows)[None]])
            return weight.to(upward) * upward - self.conflict_weight * against, rows

        return Slopes(found.gain, directions, found.gramian), found.gain / unit

    def _conflict(self, point: Point) -> tuple[Tensor | None, float]:
        """The gradient of :math:`L_c` by the adapter's tensors, and its part of the total, if it is wanted."""
        if self.conflict_weight == 0:
            return None, 0.0
        value = conflict(point)
        return point.by_adapter(value, retain_graph=True), self.conflict_weight * float(value.detach())

    def _unit(self, gain: Tensor) -> Tensor:
        """The sharpness where the search began; the first call sets it."""
        if self._start is None:
            size = gain.abs()  # of flatness, which is negative, the size is the unit, too
            self._start = torch.where(size > 0, size, torch.ones_like(gain)).detach()
        return self._start
