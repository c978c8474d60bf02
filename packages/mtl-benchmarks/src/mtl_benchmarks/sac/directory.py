"""The directory of a run of soft actor-critic."""

from __future__ import annotations

from typing import ClassVar

from mtl_benchmarks.storage.marker import Kind
from mtl_benchmarks.storage.results import RunDirectory

__all__ = ["SACDirectory"]


class SACDirectory(RunDirectory):
    """The files of one run: those of :class:`~mtl_benchmarks.storage.results.RunDirectory` but for its further tables.

    ``metrics.csv`` has step, metric and value. ``mtl-bench compare`` does not read it: its runs are of other problems.
    """

    kind: ClassVar[Kind] = "sac"
