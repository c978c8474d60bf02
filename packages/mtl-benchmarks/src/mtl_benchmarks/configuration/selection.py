"""What chooses on the validation split, and what is reported of a run in consequence."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Mapping, Sequence

from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.metrics import Metric, delta_m_or_nan
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidParameterError, UnknownNameError

__all__ = ["VALIDATION", "Selection", "learned_metrics", "learned_values"]

VALIDATION = "validation"
"""Name of the split on which schedules, early stopping and the choice of an epoch look."""

_DELTA_M = "delta_m"


def learned_metrics(benchmark: Benchmark, tasks: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of tasks that are trained, and those that belong to no single task."""
    return tuple(m for m in benchmark.metrics if m.task not in benchmark.tasks or m.task in tasks)


def learned_values(benchmark: Benchmark, tasks: Sequence[str], evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """An evaluation without the metrics of tasks that are not trained."""
    unlearned = {m.name for m in benchmark.metrics} - {m.name for m in learned_metrics(benchmark, tasks)}
    return {
        split: {name: value for name, value in values.items() if name not in unlearned}
        for split, values in evaluation.items()
    }


class Selection:
    """The metrics that a protocol watches, read from evaluations of one benchmark.

    ``"delta_m"`` is Δm of the trained tasks against the benchmark's own baselines; a name with ``*`` is the mean of the
    metrics of trained tasks that it matches; any other name is that metric.

    Args:
        benchmark: whose evaluations they are.
        tasks: the trained tasks.
        training: the protocol.

    Raises:
        InvalidParameterError: something is watched and the benchmark evaluates no validation split, Δm is and there are
            no baselines for it, or metrics are averaged that have different directions.
        UnknownNameError: a metric that does not exist; lists those that do.
    """

    def __init__(self, benchmark: Benchmark, tasks: Sequence[str], training: Training) -> None:
        self._training = training
        self._metrics = learned_metrics(benchmark, tasks)
        names = {metric.name for metric in self._metrics}
        self._baselines = tuple(b for b in benchmark.baselines if b.metric.name in names)
        # When the run begins, not at its first evaluation.
        for setting, name in training.watched.items():
            self._check(benchmark, setting, name)

    def _check(self, benchmark: Benchmark, setting: str, name: str) -> None:
        if VALIDATION not in benchmark.splits:
            raise InvalidParameterError(
                f"`{setting}` must not watch {name!r} where there is no validation split, got benchmark "
                f"{benchmark.name!r} with {', '.join(benchmark.splits)}."
            )
        if name == _DELTA_M:
            if not self._baselines:
                raise InvalidParameterError(
                    f"`{setting}` must watch a metric, got 'delta_m' for benchmark {benchmark.name!r}, which brings no "
                    f"baselines. Metrics: {', '.join(m.name for m in self._metrics)}."
                )
            return
        found = self._matching(name)
        if not found:
            raise UnknownNameError(f"metric for {setting}", name, [_DELTA_M, *(m.name for m in self._metrics)])
        if len({metric.higher_is_better for metric in found}) > 1:
            raise InvalidParameterError(
                f"`{setting}` must average metrics of one direction, got {name!r}, which matches "
                f"{', '.join(metric.name for metric in found)}."
            )

    def _matching(self, name: str) -> list[Metric]:
        if "*" not in name:
            return [metric for metric in self._metrics if metric.name == name]
        return [metric for metric in self._metrics if fnmatch.fnmatchcase(metric.name, name)]

    def _values(self, name: str | None, history: Sequence[Evaluation]) -> tuple[list[float], bool]:
        """The value of a watched metric at each evaluation, and whether more of it is better."""
        if name is None:
            # No metric is watched: the rules then need nothing but how many evaluations there are.
            return [0.0] * len(history), False
        rows = [evaluation[VALIDATION] for evaluation in history]
        if name == _DELTA_M:
            return [delta_m_or_nan(row, self._baselines) for row in rows], False
        metrics = self._matching(name)
        return [statistics.fmean(row[m.name] for m in metrics) for row in rows], metrics[0].higher_is_better

    def reductions(self, history: Sequence[Evaluation]) -> int:
        """How often the schedule has met a plateau."""
        values, higher = self._values(self._training.schedule.metric, history)
        return self._training.schedule.reductions(values, higher_is_better=higher)

    def is_over(self, history: Sequence[Evaluation]) -> bool:
        """Whether the run ends early, after these evaluations."""
        stopping = self._training.early_stopping
        if stopping is None:
            return False
        values, higher = self._values(stopping.metric, history)
        return stopping.is_over(values, higher_is_better=higher)

    def reported(self, history: Sequence[Evaluation]) -> dict[str, float]:
        """The test values that stand for a run: means over the evaluations that the protocol chooses."""
        values, higher = self._values(self._training.reported.metric, history)
        chosen = [row["test"] for row in history[self._training.reported.chosen(values, higher_is_better=higher)]]
        return {name: _mean(name, chosen) for name in chosen[-1]}


def _mean(name: str, rows: Sequence[Mapping[str, float]]) -> float:
    # A single row as it is: its bits are those in the table.
    return rows[0][name] if len(rows) == 1 else statistics.fmean(row[name] for row in rows)
