r"""How an adapter is trained: two ways to raise the sharpness :math:`L_g` while the task losses stay where they are.

``penalty`` is the paper's: Adam on :math:`a L_t - b L_g`. ``projected`` treats the losses as constraints instead of
a penalty: it climbs :math:`L_g` within the surface on which every loss keeps its value to first order, and steers back
by a Gauss-Newton step when it has drifted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtl_core.extension import gramian_of
from mtl_teleport.aim import Aim
from mtl_teleport.climb import Climb, SearchEnd, place_
from mtl_teleport.drift import relative_drift
from mtl_teleport.objective import Objective
from mtl_teleport.sharpness import Slopes, flat
from mtl_teleport.sharpness.point import norm

__all__ = ["SearchKind", "penalty", "projected"]

SearchKind = Literal["projected", "penalty"]
"""Names of the two ways."""

_RIDGE = 1e-6  # on the unit-diagonal Gramian of the constraints, so that parallel or zero loss gradients do no harm
# Of the step length, after a step that drifted too far and after one that did not. A retreat undoes between two and
# three growths, so the length settles where about one point in four is left again, which costs one evaluation.
_SHRINK, _GROW = 0.5, 1.3


def penalty(climb: Climb, aim: Aim) -> int:
    r"""Adam on :math:`a L_t - b L_g + c L_c`.

    Returns:
        the number of steps taken.
    """
    session, batches = climb.session, climb.search.batches
    # A fresh one per teleport: the adapter's tensors are new each time.
    adam = torch.optim.Adam(session.trainable, lr=climb.limits.lr)
    sizes = [tensor.numel() for tensor in session.trainable]
    aim.begin(climb)
    for step in range(climb.limits.max_steps):
        if not climb.affords(climb.limits.step_passes):
            climb.ends.append("budget")
            return step
        turn = step % len(batches)
        point = climb.objective.point(session, batches[turn], generator=climb.generator)
        value = climb.objective(point, climb.held[turn])

        drift, growth = float(relative_drift(value.losses, climb.held[turn])), float(value.growth)
        climb.record(value.losses, growth, climb.held[turn])
        if aim.is_reached(climb, drift, growth):
            climb.ends.append("aim")
            return step
        for tensor, part in zip(session.trainable, value.gradient().split(sizes), strict=True):
            tensor.grad = part.view(tensor.shape)
        adam.step()
        del point, value  # one graph at a time: this one goes before the next is made
    climb.ends.append("steps")
    return climb.limits.max_steps


def projected(climb: Climb, aim: Aim) -> int:
    r"""Projected ascent of :math:`L_g` under :math:`L_i = L_i^*`, with an adaptive step.

    With :math:`h = \nabla_\varphi (b L_g - c L_c)` and the gradients :math:`\nabla_\varphi L_i` as rows of C, one step
    is

    .. math:: \varphi \leftarrow \varphi + r\,\frac{d}{\|d\|} - C^\top (C C^\top)^{-1} (L - L^*), \qquad d = h -
        C^\top (C C^\top)^{-1} C h,

    the second term cut to length r at most. A point whose relative drift exceeds half of ``max_drift`` is left
    again, back to the last that did not, and r is halved; otherwise r grows by 1.3. So the result has a small drift
    on the batches that it saw. Sharpness may fall on the way, since gradients jump where a ReLU switches, and to stop
    there would be to stop early; without the aim reached, the search ends at the sharpest point that it saw, where
    points can be compared: on one batch, with an estimate that draws nothing, and without :math:`L_c`. Where the
    losses fix every direction, for instance with as many independent losses as parameters, nothing moves.

    A step costs one evaluation and one differentiation per task, and what the sharpness adds: one of each for
    ``ascent``. A point that is left again costs one evaluation. Where passes are limited, so does the last point, of
    which the losses alone are looked at.

    Returns:
        the number of steps taken.
    """
    walk = _Walk(climb)
    aim.begin(climb)
    # One round more than steps: the point after the last step is looked at, too, and may have to be left again.
    end: SearchEnd = "steps"
    step, last = 0, climb.limits.max_steps
    for step in range(last + 1):
        turn = step % len(climb.search.batches)
        is_paid = climb.affords(climb.limits.step_passes)
        if climb.is_bounded and (step == last or not is_paid):
            walk.settle(turn)
            end = "steps" if step == last else "budget"
            break
        look = walk.look(turn)
        if look.slopes is None:
            walk.retreat(is_last=step == last)
            continue
        walk.keep(look.growth)
        directions = look.slopes.directions() if step < last else None
        # The aim is about the first batch.
        gramian = look.slopes.gramian if turn == 0 else None
        # The graph goes before the aim is looked at, which makes one of its own: together they were the peak.
        look.slopes = None
        if aim.is_reached(climb, look.drift, look.growth, gramian=gramian):
            climb.ends.append("aim")
            return step
        if directions is None:
            break
        if not walk.advance(*directions, look.error):
            end = "no direction"
            break
    walk.end()
    climb.ends.append(end)
    return step


@dataclass
class _Look:
    """What was seen at one point; no slopes where the point is to be left again."""

    drift: float
    growth: float
    error: Tensor
    slopes: Slopes | None


class _Walk:
    """Where a projected search is, where it came from, and how long its next step is."""

    def __init__(self, climb: Climb) -> None:
        limits = climb.limits
        self._climb = climb
        self._tensors = climb.session.trainable
        # A step of Adam moves each entry by about lr, so that p entries make a step of lr √p.
        self._length = limits.stride * limits.lr * math.sqrt(sum(t.numel() for t in self._tensors))
        # Half of what is accepted in the end: the judgement is over all probe batches, of which a step sees one.
        self._limit = math.inf if limits.max_drift is None else 0.5 * limits.max_drift
        self._good = flat([t.detach() for t in self._tensors])
        self._last: Tensor | None = None
        self._is_comparable = len(climb.search.batches) == 1 and climb.objective.is_repeatable
        self._best, self._highest = self._good, -math.inf

    def look(self, turn: int) -> _Look:
        """Evaluate the present point on that turn's batch."""
        climb = self._climb
        held = climb.held[turn]
        point = climb.objective.point(climb.session, climb.search.batches[turn], generator=climb.generator)
        full = point.losses.full(math.nan).detach()
        drift, growth = float(relative_drift(full, held)), math.nan
        slopes: Slopes | None = None
        # The drift first: slopes cost more than the evaluation, and are not needed where the point is left again.
        if drift <= self._limit:
            slopes, found = climb.objective.slopes(point)
            growth = float(found)
        climb.record(full, growth, held)
        index = list(point.losses.index)
        return _Look(drift, growth, full[index] - held[index].to(full), slopes if math.isfinite(growth) else None)

    def settle(self, turn: int) -> None:
        """End at the present point, or at the last good one if it drifts; no slopes, which nothing would be made of."""
        climb = self._climb
        held = climb.held[turn]
        losses = climb.session.evaluate_without_graph(climb.search.batches[turn], parameters=climb.session.parameters())
        full = losses.full(math.nan).detach()
        climb.record(full, math.nan, held)
        if float(relative_drift(full, held)) <= self._limit:
            self.keep(math.inf)
        else:
            self.retreat(is_last=True)

    def retreat(self, *, is_last: bool) -> None:
        """Leave a point again: half the step that led to it, or no step if there is no other to follow."""
        self._length *= _SHRINK
        # A reference over several batches: a batch's own losses may differ from it before anything has moved.
        self._last = torch.zeros_like(self._good) if self._last is None else self._last * _SHRINK
        place_(self._tensors, self._good if is_last else self._good + self._last)

    def keep(self, growth: float) -> None:
        """Stay at a point for now."""
        self._good = flat([t.detach() for t in self._tensors])
        # Of equals the later one, which the search has come to last.
        if growth >= self._highest:
            self._best, self._highest = self._good, growth

    def advance(self, upward: Tensor, rows: Tensor, error: Tensor) -> bool:
        """Take a step; ``False`` if there is no direction left."""
        self._last = _tangent_step(self._climb.objective, upward, rows, error, self._length)
        if self._last is None:
            return False
        place_(self._tensors, self._good + self._last)
        self._length *= _GROW
        return True

    def end(self) -> None:
        """Go to the sharpest point seen, where points can be compared."""
        if self._is_comparable:
            place_(self._tensors, self._best)


def _tangent_step(objective: Objective, upward: Tensor, rows: Tensor, error: Tensor, length: float) -> Tensor | None:
    """One step along the constraints and back to them; ``None`` if there is no direction left."""
    if objective.gain_weight == 0 and objective.conflict_weight == 0:
        upward = torch.zeros_like(upward)
    if objective.drift_weight == 0:
        size = norm([upward])
        return upward * (length / size) if bool(size > 0) else None
    if len(rows) > len(error):  # what is held to first order alone is never steered back to
        error = torch.cat([error, error.new_zeros(len(rows) - len(error))])
    rows, error = _in_range(rows, error)
    normal = gramian_of(rows)
    norms = normal.diagonal().sqrt()
    # Solved with unit diagonal: losses of different scales would otherwise get ridges of different relative size.
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    unit = normal / norms[:, None] / norms[None, :]
    unit = unit + _RIDGE * torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    aside = torch.linalg.solve(unit, _inner(rows, upward) / norms) / norms
    along = upward - aside.to(rows) @ rows
    size = norm([along])
    # Of a direction within the span of the losses' gradients the ridge leaves about a millionth. Scaled up to a whole
    # step, that remainder would be a step along the very constraints, by rounding alone.
    free = bool(size > 1e-3 * norm([upward])) and bool(size > 0)
    move = along * (length / size) if free else torch.zeros_like(along)
    back = -(torch.linalg.solve(unit, error.to(unit) / norms) / norms).to(rows) @ rows
    back_size = float(back.norm())
    # A Gauss-Newton step back is only good to first order, as the step along is, and no longer than that.
    if back_size > length:
        back = back * (length / back_size)
    return move + back if free or back_size > 0 else None


def _in_range(rows: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Constraints whose squares can be held, in place of those whose cannot: each over its largest entry.

    A constraint may be multiplied by anything. Squares below 1e-308 are zero, and a row of zeros holds nothing: losses
    of 1e-170 were not held at all.
    """
    largest = rows.abs().amax(dim=1).to(torch.float64)
    known = largest.tolist()
    if all(size == 0.0 or _SQUARED < size < 1.0 / _SQUARED for size in known):
        return rows, error
    over = torch.where(largest > 0, largest, torch.ones_like(largest))
    return rows.to(torch.float64) / over[:, None], error.to(torch.float64) / over


_SQUARED = 1e-130
"""Entries from which on squares, and sums of many of them, lie well within float64."""


def _inner(rows: Tensor, vector: Tensor) -> Tensor:
    return rows.to(torch.float64) @ vector.to(torch.float64)
