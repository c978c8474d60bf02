"""When a search may stop early."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from mtl_teleport.climb import Climb

__all__ = ["Aim"]

_SAME = 1e-3  # of the Gramian: far above rounding, far below what dropout or batch statistics make of it


class Aim:
    r"""When to stop early: the trigger is silent and :math:`\|g_0\|` has grown by a factor.

    Both are looked at by ``Climb.gramian``. Where the search itself sees the very function of the step, which shows at
    the first point, its own Gramian is that already, and no look is needed.

    Args:
        trigger: says whether the condition to be rid of is there.
        factor: of the mean gradient's norm; ``None`` never stops.
    """

    def __init__(self, trigger: Callable[[Tensor], bool], factor: float | None) -> None:
        self._trigger = trigger
        self._factor = factor
        self._start: float | None = None
        self._is_same: bool | None = None
        self._wanted = 0.0 if factor is None else factor

    def begin(self, climb: Climb) -> None:
        """Remember where the search begins."""
        search = climb.search
        # Without the means for a look at the start, there is no aim.
        has_means = search.is_comparable or climb.affords(climb.gramian_passes + climb.limits.step_passes)
        if self._factor is not None and has_means:
            self._start = _mean_norm(search.gramian if search.is_comparable else climb.gramian())

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
            search = climb.search
            self._is_same = search.is_comparable and _is_close(gramian, search.gramian)
        is_free = gramian is not None and self._is_same is True
        # Not `gain < ...`: a gain of NaN, of a point that was left again, reaches nothing.
        if not gain >= (self._factor if is_free else self._wanted):
            return False
        max_drift = climb.limits.max_drift
        if max_drift is not None and drift > max_drift:
            return False
        if gramian is None or not is_free:
            if not climb.affords(climb.gramian_passes):
                return False
            # Looked at in vain or not: if the aim is reached, no more is asked.
            self._wanted = 1.1 * gain
            gramian = climb.gramian()
        return _mean_norm(gramian) >= self._factor * self._start and not self._trigger(gramian)


def _is_close(found: Tensor, known: Tensor) -> bool:
    return bool((found - known).norm() <= _SAME * known.norm())


def _mean_norm(gramian: Tensor) -> float:
    return math.sqrt(max(float(gramian.mean()), 0.0))
