r"""How an adapter is trained: two ways to raise the sharpness :math:`L_g` while the task losses stay where they are.

``penalty`` is the paper's: Adam on :math:`a L_t - b L_g`. ``projected`` treats the losses as constraints instead of
a penalty: it climbs :math:`L_g` within the surface on which every loss keeps its value to first order, and steers back
by a Gauss-Newton step when it has drifted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_core.extension import gramian_of, widest_dtype
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.objective import Objective, relative_drift
from mtl_teleport.sharpness import Slopes, flat
from mtl_teleport.triggers import Trigger

__all__ = ["Aim", "Climb", "SearchKind", "penalty", "projected", "task_gramian"]

SearchKind = Literal["projected", "penalty"]
"""Names of the two ways."""

_RIDGE = 1e-6  # on the unit-diagonal Gramian of the constraints, so that parallel or zero loss gradients do no harm
_SAME = 1e-3  # of the Gramian: far above rounding, far below what dropout or batch statistics make of it
_SHRINK, _GROW = 0.5, 1.3  # of the step length, after a step that drifted too far and after one that did not


@dataclass(frozen=True)
class Climb:
    """What a search works on, and the path it takes.

    Attributes:
        session: the adapter, a no-op at first.
        objective: sharpness, weights and units.
        batches: the probe batches, used in turn.
        held: the losses to hold, one ``[m]`` per batch.
        lr: length of a step: the root mean square change of an entry of the adapter's tensors, as in a step of Adam.
        max_steps: number of steps at most.
        max_drift: mean relative drift of the losses that will be accepted in the end, or ``None``.
        generator: for random sharpness, on the parameters' device.
        start: the Gramian ``[m, m]`` of the task gradients where the search begins, if it is known.
        look: gives the Gramian at the adapter's present point; ``None`` for that of the first batch.
        path: filled by the search: per point that it looked at, the losses ``[m]`` on that turn's batch and the growth
            of the sharpness (NaN where the point was left for its drift alone).
    """

    session: AdapterSession
    objective: Objective
    batches: Sequence[Any]
    held: Sequence[Tensor]
    lr: float
    max_steps: int
    max_drift: float | None
    generator: torch.Generator
    start: Tensor | None = None
    look: Callable[[AdapterSession], Tensor] | None = None
    path: list[tuple[tuple[float, ...], float]] = field(default_factory=list)

    def gramian(self) -> Tensor:
        """The Gramian of the task gradients at the present point."""
        return task_gramian(self.session, self.batches[0]) if self.look is None else self.look(self.session)


class Aim:
    r"""When to stop early: the trigger is silent and :math:`\|g_0\|` has grown by a factor.

    Both are looked at by ``Climb.gramian``. Where the search itself sees the very function of the step, which shows at
    the first point, its own Gramian is that already, and no look is needed.

    Args:
        trigger: the condition to be rid of.
        factor: of the mean gradient's norm; ``None`` never stops.
    """

    def __init__(self, trigger: Trigger, factor: float | None) -> None:
        self._trigger = trigger
        self._factor = factor
        self._start: float | None = None
        self._is_same: bool | None = None
        self._wanted = 0.0 if factor is None else factor

    def begin(self, climb: Climb) -> None:
        """Remember where the search begins."""
        if self._factor is not None:
            self._start = _mean_norm(climb.gramian() if climb.start is None else climb.start)

    def is_reached(self, climb: Climb, drift: float, gain: float, *, gramian: Tensor | None = None) -> bool:
        """Whether the present point will do; looks at gradients only if drift and sharpness already allow it.

        A look costs about as much as a step, so after one in vain the sharpness must have grown by a tenth for another.

        Args:
            climb: the search.
            drift: relative drift of the losses here.
            gain: sharpness here over sharpness at the start.
            gramian: that of the task gradients on the first batch as the search sees them, where it is known.
        """
        if self._factor is None or self._start is None:
            return False
        if gramian is not None and self._is_same is None:
            self._is_same = climb.start is not None and _is_close(gramian, climb.start)
        is_free = gramian is not None and self._is_same is True
        if not gain >= (self._factor if is_free else self._wanted):
            return False
        if climb.max_drift is not None and drift > climb.max_drift:
            return False
        if gramian is None or not is_free:
            self._wanted = 1.1 * gain
            gramian = climb.gramian()
        return _mean_norm(gramian) >= self._factor * self._start and not self._trigger(gramian)


def _is_close(found: Tensor, known: Tensor) -> bool:
    return bool((found - known).norm() <= _SAME * known.norm())


def task_gramian(session: AdapterSession, *batches: Any) -> Tensor:
    """The Gramian ``[m, m]`` of the gradients at the adapted point, averaged over batches that have the task.

    Args:
        session: the problem with its adapter.
        batches: one batch, or the parts of one.
    """
    n_tasks = session.problem.n_tasks
    jacobian: Tensor | None = None
    counts = [0] * n_tasks
    for batch in batches:
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        inputs = list(point.values())
        if jacobian is None:
            size, dtype = sum(t.numel() for t in inputs), widest_dtype(inputs)
            jacobian = torch.zeros(n_tasks, size, dtype=dtype, device=inputs[0].device)
        for task, row in zip(losses.index, session.each_task_gradient(losses, inputs), strict=True):
            counts[task] += 1
            for part, gradient in zip(jacobian[task].split([t.numel() for t in inputs]), row, strict=True):
                part.add_(gradient.reshape(-1))
    assert jacobian is not None
    if len(batches) > 1:
        jacobian /= torch.tensor(counts, dtype=jacobian.dtype, device=jacobian.device).clamp(min=1.0)[:, None]
    return gramian_of(jacobian).cpu()


def _mean_norm(gramian: Tensor) -> float:
    return math.sqrt(max(float(gramian.mean()), 0.0))


def penalty(climb: Climb, aim: Aim) -> int:
    r"""Adam on :math:`a L_t - b L_g + c L_c`.

    Returns:
        the number of steps taken.
    """
    session = climb.session
    adam = torch.optim.Adam(session.trainable, lr=climb.lr)
    aim.begin(climb)
    for step in range(climb.max_steps):
        turn = step % len(climb.batches)
        value = climb.objective(session, climb.batches[turn], climb.held[turn], generator=climb.generator)
        full = value.losses.full(math.nan).detach()
        drift, growth = float(relative_drift(full, climb.held[turn])), float(value.growth)
        climb.path.append((tuple(full.tolist()), growth))
        if aim.is_reached(climb, drift, growth):
            return step
        for tensor, gradient in zip(
            session.trainable, session.differentiate(value.total, session.trainable), strict=True
        ):
            tensor.grad = gradient
        adam.step()
        torch.clear_autocast_cache()
    return climb.max_steps


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
    ``ascent``. A point that is left again costs one evaluation.

    Returns:
        the number of steps taken.
    """
    session, tensors = climb.session, climb.session.trainable
    length = climb.lr * math.sqrt(sum(t.numel() for t in tensors))
    limit = math.inf if climb.max_drift is None else 0.5 * climb.max_drift
    good = flat([t.detach() for t in tensors])
    last: Tensor | None = None
    comparable = len(climb.batches) == 1 and climb.objective.is_repeatable
    best, highest = good, -math.inf
    aim.begin(climb)
    losses: TaskLosses | None
    slopes: Slopes | None
    point: dict[str, Tensor] | None
    step = 0
    for step in range(climb.max_steps + 1):
        turn = step % len(climb.batches)
        batch, held = climb.batches[turn], climb.held[turn]
        losses, slopes, point = None, None, None  # one graph at a time: the last goes before the next is made
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        full = losses.full(math.nan).detach()
        drift, growth = float(relative_drift(full, held)), math.nan
        if drift <= limit:
            slopes, found = climb.objective.slopes(session, batch, point, losses, generator=climb.generator)
            growth = float(found)
        climb.path.append((tuple(full.tolist()), growth))
        if slopes is None or not math.isfinite(growth):
            length *= _SHRINK
            if last is None:
                # A reference over several batches: this batch's own losses differ from it before anything has moved.
                last = torch.zeros_like(good)
            last = last * _SHRINK
            _place(tensors, good if step == climb.max_steps else good + last)
            continue
        good = flat([t.detach() for t in tensors])
        if growth >= highest:
            best, highest = good, growth
        directions = slopes.directions() if step < climb.max_steps else None
        gramian = slopes.gramian if turn == 0 else None
        slopes, point = None, None  # they are gone before the aim is looked at, which needs a graph of its own
        if aim.is_reached(climb, drift, growth, gramian=gramian):
            return step
        if directions is None:
            break
        upward, rows = directions
        index = list(losses.index)
        last = _tangent_step(climb.objective, upward, rows, full[index] - held[index].to(full), length)
        if last is None:
            break
        _place(tensors, good + last)
        length *= _GROW
    if comparable:
        _place(tensors, best)
    return step


def _tangent_step(objective: Objective, upward: Tensor, rows: Tensor, error: Tensor, length: float) -> Tensor | None:
    """One step along the constraints and back to them; ``None`` if there is no direction left."""
    if objective.gain_weight == 0 and objective.conflict_weight == 0:
        upward = torch.zeros_like(upward)
    if objective.drift_weight == 0:
        size = upward.norm()
        return upward * (length / size) if bool(size > 0) else None
    normal = gramian_of(rows)
    norms = normal.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    unit = normal / norms[:, None] / norms[None, :]
    unit = unit + _RIDGE * torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    aside = torch.linalg.solve(unit, _inner(rows, upward) / norms) / norms
    along = upward - aside.to(rows) @ rows
    size = along.norm()
    # What the ridge leaves of a direction within the span of the losses' gradients is no direction.
    free = bool(size > 1e-3 * upward.norm()) and bool(size > 0)
    move = along * (length / size) if free else torch.zeros_like(along)
    back = -(torch.linalg.solve(unit, error.to(unit) / norms) / norms).to(rows) @ rows
    back_size = float(back.norm())
    if back_size > length:
        back = back * (length / back_size)
    return move + back if free or back_size > 0 else None


def _inner(rows: Tensor, vector: Tensor) -> Tensor:
    return rows.to(torch.float64) @ vector.to(torch.float64)


@torch.no_grad()
def _place(tensors: Sequence[Tensor], values: Tensor) -> None:
    for tensor, part in zip(tensors, torch.split(values, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
    # Within one autocast region low-precision copies of leaves are kept, and would go on showing the old values.
    torch.clear_autocast_cache()
