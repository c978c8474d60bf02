"""What became of each method of a study, computed from the records of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.metrics import Baseline, Metric, delta_m
from mtl_benchmarks.studies.controls import CONTROLS
from mtl_benchmarks.studies.records import ALONE, Record, label
from mtl_core import InvalidInputError

__all__ = ["StudyRow", "heading_of", "main_metric", "rows_of"]


@dataclass(frozen=True)
class StudyRow:
    """What became of a method.

    Attributes:
        name: the method's.
        measure: way (see :func:`~mtl_benchmarks.studies.records.label`) → seed → Δm in percent, or the benchmark's main
            metric where there is no Δm. A run that diverged has the worst value that a run of the study came to.
        seconds: way → training time of one run.
        diverged: way → seeds of the runs that diverged.
        metric: what is measured; None: Δm.
    """

    name: str
    measure: Mapping[str, Mapping[int, float]]
    seconds: Mapping[str, float]
    diverged: Mapping[str, Sequence[int]] = field(default_factory=dict)
    metric: Metric | None = None

    @property
    def ways(self) -> tuple[str, ...]:
        """What moves the parameters, without the method alone and without controls."""
        return tuple(way for way in self.measure if way != ALONE and not any(_is_control(way, c) for c in CONTROLS))

    def controls(self, way: str) -> dict[str, str]:
        """Control → its label, for those that a way has."""
        return {control: label(way, control) for control in CONTROLS if label(way, control) in self.measure}

    def difference(self, way: str, other: str = ALONE) -> Estimate:
        """Mean over the common seeds of one way's measure minus another's."""
        own, than = self.measure[way], self.measure[other]
        return Estimate.of([value - than[seed] for seed, value in own.items() if seed in than])


def _is_control(way: str, control: str) -> bool:
    return way.startswith(label("", control))


def rows_of(records: Iterable[Record]) -> list[StudyRow]:
    """One row per method from the runs of one case of a benchmark, those of single tasks among them.

    Raises:
        InvalidInputError: runs of several cases or protocols, or none that ended.
    """
    records = list(records)
    kinds = {(record.title, record.protocol) for record in records}
    if len(kinds) != 1:
        raise InvalidInputError(f"`records` must be of one case and protocol, got {sorted(kinds)}.")
    benchmark = benchmark_class(records[0].benchmark)
    joint = [record for record in records if not record.task]
    baselines = _baselines(benchmark, records)
    metric = None if baselines else main_metric(benchmark, {name for record in joint for name in record.values})

    def measured(record: Record) -> float:
        return delta_m(record.values, baselines) if metric is None else record.values[metric.name]

    # By identity: records are not hashable, as their values are a mapping.
    known = {id(record): measured(record) for record in joint if not record.diverged}
    if not known:
        raise InvalidInputError("`records` must hold a joint run that ended with numbers, got none.")
    # Left out, a way that diverges would look better than it is; counted as the worst of the others it is flattered
    # still.
    lost = (max if metric is None or not metric.higher_is_better else min)(known.values())
    rows = []
    for method in dict.fromkeys(record.method for record in joint):
        by_way: dict[str, list[Record]] = {}
        for record in joint:
            if record.method == method:
                by_way.setdefault(label(record.way, record.control), []).append(record)
        rows.append(
            StudyRow(
                method,
                {way: {r.seed: known.get(id(r), lost) for r in own} for way, own in by_way.items()},
                {way: statistics.fmean(record.seconds for record in own) for way, own in by_way.items()},
                {way: seeds for way, own in by_way.items() if (seeds := [r.seed for r in own if r.diverged])},
                metric,
            )
        )
    return rows


def _baselines(benchmark: type[Benchmark], records: Sequence[Record]) -> tuple[Baseline, ...]:
    """Means over the seeds of the single-task runs; none where a metric has no such run, or one whose value is 0."""
    trained = {name for record in records if not record.task for name in record.values}
    found = []
    for metric in benchmark.metrics:
        if metric.task in benchmark.tasks and metric.name in trained:
            own = [record.values[metric.name] for record in records if record.task and metric.name in record.values]
            if not own or not statistics.fmean(own):
                return ()
            found.append(Baseline(metric, statistics.fmean(own), f"{len(own)} single-task runs of the study"))
    return tuple(found)


def main_metric(benchmark: type[Benchmark], known: Collection[str]) -> Metric:
    """What stands for a run where there is no Δm: the last of the benchmark's metrics that it has."""
    return [metric for metric in benchmark.metrics if metric.name in known][-1]


def heading_of(metric: Metric | None) -> str:
    """How tables call what stands for a run; None: Δm."""
    return "Δm % ↓" if metric is None else f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"
