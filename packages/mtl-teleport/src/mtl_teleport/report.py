"""What a teleport reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mtl_core import TaskGradients, mean_cosines
from mtl_teleport.climb import SearchEnd

__all__ = ["TeleportReport", "conflict_measures"]


@dataclass(frozen=True, kw_only=True)
class TeleportReport:
    r"""One teleport, accepted or rolled back.

    Losses are means over the probe batches, in the mode of the search. Cosines and norms are those of the step's own
    batch, in the mode the model trains in, at the point before and at the point where the step then goes on.

    Attributes:
        step: index of the step, from 0.
        epoch: index of the epoch, if the method was told.
        trigger: the condition that fired.
        tasks: the tasks' names, in the order of everything per task.
        accepted: whether the shared parameters moved.
        reason: why it was accepted or rolled back.
        losses_before, losses_after: per task, NaN if absent; ``after`` is at the point that was judged last.
        drift: mean relative change of the losses at that point.
        cosines_before, cosines_after: :math:`\cos\varphi_{i0}` per task; ``after`` is ``None`` if rolled back.
        norms_before, norms_after: :math:`\|g_i\|` per task; ``after`` is ``None`` if rolled back.
        mean_norm_before, mean_norm_after: :math:`\|g_0\|` of the mean gradient; ``after`` is ``None`` if rolled back.
        sigma: :math:`\cos(\Delta\theta, g')`, ``None`` if rolled back.
        length: :math:`\|\Delta\theta\|` of the move that was made; 0 if rolled back.
        relative_length: :math:`\|\Delta\theta\| / \|\theta\|` over the shared parameters.
        scale: the part of the proposed displacement that was taken; below 1 after backtracking.
        kept: how much of the move is in the parameters after the step's own update,
            :math:`\langle\theta_{after} - \theta_{before}, \Delta\theta\rangle / \|\Delta\theta\|^2`: close to 1, or
            close to 0 where the optimiser has undone the move from a copy of the weights of its own; ``None`` if rolled
            back, or without a step.
        adapter_steps: optimisation steps of the adapter.
        search_losses: the losses at each point that the search looked at, on that turn's probe batch; NaN if absent.
        search_growth: the sharpness there over that at the start; NaN where only the losses were looked at: a point
            that was left for its drift alone, or the last one under a budget.
        search_change: :math:`L_t = \frac1m \sum_i |L_i - L_i^*|` there, against the losses held on that batch, in their
            units (equation 7 of the paper), over the tasks that are present.
        seconds: wall-clock time of the teleport.
        forwards, backwards: evaluations and differentiations of the losses in the search and in judging its result.
        passes: what the teleport added to training, in evaluations of a batch: all of these, a differentiation counted
            as two, or seven where it is differentiated again, and the gradients at the new point, or once more at the
            old one. The trigger's look is not among them.
        ended: why the search ended: ``"aim"``, ``"steps"``, ``"budget"`` or ``"no direction"``; ``None`` without a
            search.
    """

    kind: ClassVar[str] = "teleport"

    step: int
    epoch: int | None
    trigger: str
    tasks: tuple[str, ...]
    accepted: bool
    reason: str
    losses_before: tuple[float, ...]
    losses_after: tuple[float, ...]
    drift: float
    cosines_before: tuple[float, ...]
    cosines_after: tuple[float, ...] | None
    norms_before: tuple[float, ...]
    norms_after: tuple[float, ...] | None
    mean_norm_before: float
    mean_norm_after: float | None
    sigma: float | None
    length: float
    relative_length: float
    scale: float
    kept: float | None
    adapter_steps: int
    search_losses: tuple[tuple[float, ...], ...]
    search_growth: tuple[float, ...]
    search_change: tuple[float, ...] = ()
    seconds: float
    forwards: int
    backwards: int
    passes: int = 0
    ended: SearchEnd | None = None

    @property
    def min_cosine_before(self) -> float:
        r""":math:`\min_i \cos\varphi_{i0}` before."""
        return _smallest(self.cosines_before)

    @property
    def min_cosine_after(self) -> float | None:
        r""":math:`\min_i \cos\varphi_{i0}` after, ``None`` if rolled back."""
        return None if self.cosines_after is None else _smallest(self.cosines_after)

    def as_dict(self) -> dict[str, Any]:
        """The report as data that JSON can hold: lists for tuples, ``None`` for NaN and infinities."""
        found: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            found[field.name] = _plain(getattr(self, field.name))
        found["min_cosine_before"] = _plain(self.min_cosine_before)
        found["min_cosine_after"] = _plain(self.min_cosine_after)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    # JSON has neither NaN nor infinity.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _smallest(values: tuple[float, ...]) -> float:
    """The smallest value of the tasks that are present."""
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def conflict_measures(gradients: TaskGradients) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Cosines with the mean and norms per task, NaN for an absent task, and the norm of the mean gradient."""
    gramian = gradients.host_gramian
    cosines, norms = mean_cosines(gramian=gramian).tolist(), gramian.diagonal().clamp(min=0.0).sqrt().tolist()
    counts = gradients.counts
    # An absent task's zero row would be reported as a norm of 0, which is another thing.
    present = set(gradients.present) if counts is None else {i for i, count in enumerate(counts.tolist()) if count}
    return (
        tuple(c if i in present else math.nan for i, c in enumerate(cosines)),
        tuple(n if i in present else math.nan for i, n in enumerate(norms)),
        # The squared norm of the mean gradient is the mean of all entries of the Gramian, which rounding may leave
        # below 0.
        math.sqrt(max(float(gramian.mean()), 0.0)),
    )
