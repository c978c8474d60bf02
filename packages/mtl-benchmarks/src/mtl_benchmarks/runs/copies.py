"""Runs that are there twice: the same training done again is no second seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mtl_benchmarks.runs.runner import RunResult

__all__ = ["Copy", "distinct"]


@dataclass(frozen=True)
class Copy:
    """A run that is there twice.

    Attributes:
        kept: the one that counts.
        dropped: the one that does not.
        differing: metrics in which the two differ though their configuration and seed are the same.
    """

    kept: RunResult
    dropped: RunResult
    differing: tuple[str, ...]

    @property
    def text(self) -> str:
        """The fact as a sentence."""
        where = f"{self.dropped.directory.name} in {self.dropped.directory.parent.name or '.'}"
        if not self.differing:
            return f"{where} is a copy of {self.kept.directory.name} and counts once."
        return (
            f"{where} has the configuration and seed of {self.kept.directory.name} and other values of "
            f"{', '.join(self.differing)}; the first one found counts."
        )


def distinct(runs: Iterable[RunResult]) -> tuple[list[RunResult], list[Copy]]:
    """Each configuration and seed once: a second run of the same is no second seed.

    Returns:
        the first run of each, in order, and what was left out.
    """
    kept: dict[str, RunResult] = {}
    copies: list[Copy] = []
    for run in runs:
        first = kept.setdefault(run.config.digest(with_seed=True), run)
        if first is not run:
            names = dict.fromkeys([*first.values, *run.values])
            other = tuple(name for name in names if not _same(first.values.get(name), run.values.get(name)))
            copies.append(Copy(first, run, other))
    return list(kept.values()), copies


def _same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and one != one and other != other)
