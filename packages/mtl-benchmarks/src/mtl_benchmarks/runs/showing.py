"""When the tables of a run that goes on are written."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

__all__ = ["Due", "Showing"]

_SERIES_EVERY = 30.0
"""Seconds between two times that the tables of single steps are written."""
_EACH = 25
"""Evaluations up to which the others are written after each."""


class Due(NamedTuple):
    """Whether tables are to be written, and whether those of single steps are among them."""

    tables: bool
    series: bool


class Showing:
    """Says after an evaluation what is to be written, so that it takes a small part of the time of a short epoch.

    Tables are written whole. Those of single steps have thousands of lines: they come now and then, by the clock. The
    others grow with every evaluation, and n times n rows would in the end take longer than an epoch: they come with
    these, and after every ``1 + n // 25``-th evaluation.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def after(self, n: int) -> Due:
        """What is due.

        Args:
            n: evaluations so far.

        Example:
            >>> showing = Showing()
            >>> showing.after(1), showing.after(2)
            (Due(tables=True, series=True), Due(tables=True, series=False))
            >>> [n for n in range(70, 80) if showing.after(n).tables]
            [72, 76]
        """
        now = time.monotonic()
        series = now - self._last >= _SERIES_EVERY
        if series:
            self._last = now
        return Due(series or n % (1 + n // _EACH) == 0, series)
