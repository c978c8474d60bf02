"""What stands for a run: Δm against single-task runs, or a metric where there can be no Δm.

One rule for every table, figure and test. Every metric of the trained tasks needs single-task runs of the same
protocol; all of them must have ended with a number; and the mean of these over their seeds, which is the baseline, must
not be 0, as Δm is a share of it. Where one seed of a single-task run diverged, the mean of the others would be a value
that training reaches only sometimes. Without Δm the last metric that the runs have stands for them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtl_benchmarks.metrics import Baseline, Metric, delta_m_or_nan

__all__ = ["Measure", "lacking_seeds", "listed_seeds", "measure_of", "sources"]


@dataclass(frozen=True)
class Measure:
    """What stands for a run, and why.

    Attributes:
        baselines: the single-task values behind Δm; empty where there is no Δm.
        metric: what stands for a run then; None: Δm.
        why: why there is no Δm, as a part of a sentence; empty where there is one.
    """

    baselines: tuple[Baseline, ...]
    metric: Metric | None
    why: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""
        return self.metric is not None and self.metric.higher_is_better

    @property
    def note(self) -> str:
        """What is measured and what it is held against, as a sentence."""
        if self.baselines:
            return f"Δm is against {sources(self.baselines)}, held fixed."
        stands = "" if self.metric is None else f": {self.metric.name} stands for a run"
        return f"No Δm, as {self.why}{stands}."

    def of(self, values: Mapping[str, float]) -> float:
        """The number of one run; NaN where it has diverged."""
        if self.metric is None:
            return delta_m_or_nan(values, self.baselines)
        return values.get(self.metric.name, math.nan)


def measure_of(
    metrics: Sequence[Metric],
    singles: Mapping[str, Mapping[int, float]],
    *,
    tasks: Collection[str],
    known: Collection[str],
    source: str = "",
) -> Measure:
    """What stands for runs of several tasks.

    Args:
        metrics: those of the benchmark, in its order.
        singles: name of a metric → seed → value of the single-task run; NaN where that run diverged.
        tasks: the trained tasks.
        known: names of the metrics that the runs have.
        source: what the single-task runs are of, such as ``" of this code"``.

    Example:
        >>> error = Metric("error", "image", "", higher_is_better=False)
        >>> found = measure_of([error], {"error": {0: 0.5, 1: float("nan")}}, tasks=["image"], known=["error"])
        >>> found.baselines, found.note
        ((), 'No Δm, as the single-task run of image with seed 1 diverged: error stands for a run.')
    """
    held = [metric for metric in metrics if metric.task in tasks and metric.name in known]
    why = _why_not(held, singles)
    if not why:
        return Measure(tuple(_baseline(metric, singles[metric.name], source) for metric in held), None)
    return Measure((), next((metric for metric in reversed(metrics) if metric.name in known), None), why)


def _baseline(metric: Metric, by_seed: Mapping[int, float], source: str) -> Baseline:
    text = f"{len(by_seed)} single-task run(s){source}, seeds {', '.join(map(str, sorted(by_seed)))}"
    return Baseline(metric, statistics.fmean(by_seed.values()), text)


def _why_not(held: Sequence[Metric], singles: Mapping[str, Mapping[int, float]]) -> str:
    without = [metric.task for metric in held if not singles.get(metric.name)]
    if len(without) == len(held):
        return "there are no single-task runs of the same protocol"
    if without:
        return f"there is no single-task run of {', '.join(dict.fromkeys(without))}"
    lost: dict[str, list[int]] = {}
    for metric in held:
        seeds = [seed for seed, value in singles[metric.name].items() if not math.isfinite(value)]
        if seeds:
            lost[metric.task] = sorted({*lost.get(metric.task, ()), *seeds})
    if lost:
        named = " and of ".join(f"{task} with {listed_seeds(seeds)}" for task, seeds in lost.items())
        return f"the single-task run of {named} diverged"
    zero = [metric.name for metric in held if statistics.fmean(singles[metric.name].values()) == 0.0]
    return f"the single-task value of {', '.join(zero)} is 0" if zero else ""


def sources(baselines: Iterable[Baseline]) -> str:
    """Which runs are behind baselines, and of which tasks where these have not the same ones."""
    tasks: dict[str, dict[str, None]] = {}
    for baseline in baselines:
        tasks.setdefault(baseline.source, {})[baseline.metric.task] = None
    if len(tasks) == 1:
        return next(iter(tasks))
    return "; ".join(f"{source} ({', '.join(own)})" for source, own in tasks.items())


def listed_seeds(seeds: Collection[int]) -> str:
    """Seeds in words.

    Example:
        >>> listed_seeds([3]), listed_seeds([2, 0])
        ('seed 3', 'seeds 0, 2')
    """
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def lacking_seeds(by_name: Mapping[str, Collection[int]]) -> str:
    """Which of several means are over fewer seeds than the others, as a sentence; empty where all have the same.

    Args:
        by_name: what the mean is of → its seeds.

    Example:
        >>> lacking_seeds({"ls": [0, 1, 2], "mgda": [0, 2]})
        'Means are over the seeds that there are: mgda without seed 1.'
    """
    every = {seed for seeds in by_name.values() for seed in seeds}
    found = [f"{name} without {listed_seeds(gone)}" for name, own in by_name.items() if (gone := every - set(own))]
    return f"Means are over the seeds that there are: {'; '.join(found)}." if found else ""
