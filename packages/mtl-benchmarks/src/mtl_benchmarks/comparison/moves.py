"""What the teleports of some runs did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mtl_benchmarks.runs.runner import RunResult

__all__ = ["Moves", "moves"]


@dataclass(frozen=True)
class Moves:
    """What the teleports of some runs did: means over those that were accepted.

    Attributes:
        accepted: how many were.
        rejected: how many were rolled back.
        min_cosine: smallest cosine of a task's gradient with the mean gradient, before and after.
        mean_norm: norm of the mean gradient, before and after.
        drift: mean relative change of the losses, a fraction.
        length: distance moved.
        seconds: wall-clock time of one, rejected ones included.
    """

    accepted: int
    rejected: int
    min_cosine: tuple[float, float]
    mean_norm: tuple[float, float]
    drift: float
    length: float
    seconds: float


def moves(runs: Iterable[RunResult]) -> Moves | None:
    """Summarise the teleports of ``runs``; None where there was none."""
    events = [event for run in runs for event in run.events if "accepted" in event]
    if not events:
        return None
    kept = [event for event in events if event["accepted"]]

    def mean(name: str) -> float:
        values = [event[name] for event in kept if event[name] is not None]
        return statistics.fmean(values) if values else math.nan

    return Moves(
        accepted=len(kept),
        rejected=len(events) - len(kept),
        min_cosine=(mean("min_cosine_before"), mean("min_cosine_after")),
        mean_norm=(mean("mean_norm_before"), mean("mean_norm_after")),
        drift=mean("drift"),
        length=mean("length"),
        seconds=statistics.fmean(event["seconds"] for event in events),
    )
