"""What became of each method of a study, computed from the records of its runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.metrics import Metric, difference
from mtl_benchmarks.runs.measure import Measure, measure_of
from mtl_benchmarks.studies.controls import CONTROLS
from mtl_benchmarks.studies.records import ALONE, Record, label
from mtl_core import InvalidInputError

__all__ = ["StudyRow", "controls_of", "heading_of", "measure_of_records", "reference_of", "rows_of", "ways_of"]


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

    def minus(self, way: str, other: str = ALONE) -> dict[int, float]:
        """Common seed → one way's measure minus another's; none where the method has not both of them."""
        return self._minus(self.measure.get(way, {}), self.measure.get(other, {}))

    def minus_method(self, other: StudyRow) -> dict[int, float]:
        """Common seed → the measure of this method alone minus that of another one alone."""
        return self._minus(self.measure[ALONE], other.measure[ALONE])

    def difference(self, way: str, other: str = ALONE) -> Estimate:
        """Mean over the common seeds of one way's measure minus another's.

        Raises:
            InvalidInputError: there is no common seed.
        """
        return Estimate.of(list(self.minus(way, other).values()))

    def _minus(self, own: Mapping[int, float], than: Mapping[int, float]) -> dict[int, float]:
        percent = self.metric is None
        return {seed: difference(value, than[seed], percent=percent) for seed, value in own.items() if seed in than}


def _is_control(way: str, control: str) -> bool:
    return way.startswith(label("", control))


def ways_of(rows: Sequence[StudyRow]) -> tuple[str, ...]:
    """What moves the parameters in some row."""
    return tuple(dict.fromkeys(way for row in rows for way in row.ways))


def controls_of(rows: Sequence[StudyRow], way: str) -> dict[str, str]:
    """Control → its label, for those that a way has in some row."""
    found = {control: name for row in rows for control, name in row.controls(way).items()}
    return {control: found[control] for control in CONTROLS if control in found}


def reference_of(rows: Sequence[StudyRow]) -> StudyRow:
    """The row that the other methods are held against: equal weights where they are there, else the first."""
    return next((row for row in rows if row.name == "ls"), rows[0])


def rows_of(records: Iterable[Record]) -> list[StudyRow]:
    """One row per method from the runs of one case of a benchmark, those of single tasks among them.

    What stands for a run is by the rule of :mod:`mtl_benchmarks.runs.measure`.

    Raises:
        InvalidInputError: runs of several cases, protocols or sets of tasks, none that ended with numbers, a method
            without a run of its own, runs of one name and other options, or values that are no metrics of the
            benchmark.
    """
    records = list(records)
    measure = measure_of_records(records)
    joint = [record for record in records if not record.task]
    # By identity: records are not hashable, as their values are a mapping.
    known = {id(record): measure.of(record.values) for record in joint if not record.diverged}
    # Left out, a way that diverges would look better than it is; counted as the worst of the others it is flattered
    # still.
    lost = (min if measure.higher_is_better else max)(known.values())
    rows = []
    for method in dict.fromkeys(record.method for record in joint):
        by_way: dict[str, list[Record]] = {}
        for record in joint:
            if record.method == method:
                by_way.setdefault(label(record.way, record.control), []).append(record)
        _refuse_other_options(method, by_way)
        if ALONE not in by_way:
            raise InvalidInputError(
                f"`records` must hold runs of every method alone (way {ALONE!r}), got {method!r} with "
                f"{', '.join(by_way)} on {records[0].title}. Give the table that has them, too."
            )
        rows.append(
            StudyRow(
                method,
                {way: {r.seed: known.get(id(r), lost) for r in own} for way, own in by_way.items()},
                {way: statistics.fmean(record.seconds for record in own) for way, own in by_way.items()},
                {way: seeds for way, own in by_way.items() if (seeds := [r.seed for r in own if r.diverged])},
                measure.metric,
            )
        )
    return rows


def _refuse_other_options(method: str, by_way: Mapping[str, Sequence[Record]]) -> None:
    """Refuse to take runs for those of one method that are not called otherwise, and are of other options."""
    for way, own in by_way.items():
        kinds = list(dict.fromkeys(record.options for record in own))
        if len(kinds) > 1:
            shown = " and ".join(kind or "none" for kind in kinds)
            raise InvalidInputError(
                f"`records` of {method!r} with {way!r} must be of the same options, got digests {shown} of them on "
                f"{own[0].title}: a default that another version had, or a table of a version that wrote none. Give "
                "the studies' commands again, for complete runs are only read, or give their tables by themselves."
            )


def measure_of_records(records: Sequence[Record]) -> Measure:
    """What stands for the runs of one case of a benchmark.

    Raises:
        InvalidInputError: as :func:`rows_of`, but for a method without a run of its own.
    """
    trained = _trained(records)
    metrics = benchmark_class(records[0].benchmark).metrics
    singles: dict[str, dict[int, float]] = {}
    for record in records:
        for metric in metrics if record.task else ():
            if metric.task == record.task:
                singles.setdefault(metric.name, {})[record.seed] = record.values.get(metric.name, math.nan)
    tasks = benchmark_class(records[0].benchmark).tasks
    return measure_of(metrics, singles, tasks=tasks, known=trained, source=" of the study")


def _trained(records: Sequence[Record]) -> set[str]:
    """The metrics that the joint runs have: all the same, and such as the benchmark has."""
    kinds = sorted({(record.title, record.protocol) for record in records})
    if len(kinds) != 1:
        found = "; ".join(f"{title} (protocol {protocol})" for title, protocol in kinds) or "none"
        raise InvalidInputError(
            f"`records` must be of one case and protocol, got {found}. Runs with other tasks, training or options do "
            "not compare: give their tables by themselves."
        )
    title, joint = records[0].title, [record for record in records if not record.task]
    found_by = {tuple(sorted(record.values)) for record in joint if not record.diverged}
    if not found_by:
        how = "all of them diverged" if joint else "there are runs of single tasks only"
        raise InvalidInputError(
            f"`records` must hold a run of several tasks that ended with numbers, got none of {title}: {how}."
        )
    if len(found_by) > 1:
        raise InvalidInputError(
            f"`records` must be of the same tasks, got runs of {title} with "
            f"{' and with '.join(', '.join(names) for names in sorted(found_by))}. Give their tables by themselves."
        )
    known = {metric.name for metric in benchmark_class(records[0].benchmark).metrics}
    unknown = sorted({name for record in records for name in record.values} - known)
    if unknown:
        raise InvalidInputError(
            f"`records` must hold metrics of {records[0].benchmark!r} ({', '.join(sorted(known))}), got "
            f"{', '.join(unknown)}."
        )
    return set(*found_by)


def heading_of(metric: Metric | None) -> str:
    """How tables call what stands for a run; None: Δm."""
    return "Δm % ↓" if metric is None else f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"
