"""What is measured: metrics that know their direction, the relative loss Δm and the mean rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtl_core import InvalidInputError
from mtl_core.checks import one_of

__all__ = ["Baseline", "Metric", "Ties", "delta_m", "delta_m_or_nan", "difference", "mean_rank", "ranks"]

Ties = Literal["competition", "dense", "average"]


@dataclass(frozen=True)
class Metric:
    """One measured quantity of one task.

    Args:
        name: unique within a benchmark, as it stands in tables and files.
        task: the task that it measures.
        unit: what one unit of the value is; empty for a pure number.
        higher_is_better: its direction; a property of the metric, never of the caller.
    """

    name: str
    task: str
    unit: str
    higher_is_better: bool

    @property
    def sign(self) -> float:
        """+1 where more is better, -1 where less is."""
        return 1.0 if self.higher_is_better else -1.0


@dataclass(frozen=True)
class Baseline:
    """The single-task value of a metric and where it comes from.

    Args:
        metric: what was measured.
        value: the value reached by a model that learns this task alone; not zero.
        source: a table of a paper, or the runs that gave it.
    """

    metric: Metric
    value: float
    source: str


def difference(value: float, reference: float, *, percent: bool = False) -> float:
    """A value minus another; 0 where they differ by no more than rounding makes of the same training.

    Sums in another order differ in the seventh digit, the same way with every seed: a test would find that with any
    certainty, and a rank would follow it.

    Args:
        value: of a metric, or Δm.
        reference: likewise.
        percent: both are Δm, whose rounding is that of the metrics behind it and stays where Δm is near 0.

    Example:
        >>> difference(2.0, 1.5), difference(0.1234567, 0.1234568), difference(3e-5, 1e-5, percent=True)
        (0.5, 0.0, 0.0)
    """
    size = max(abs(value), abs(reference), 10.0 if percent else 0.0)
    found = value - reference
    # Of an infinite value nothing is a small share.
    return 0.0 if math.isfinite(size) and abs(found) <= _ROUNDING * size else found


_ROUNDING = 1e-5


def delta_m(
    values: Mapping[str, float],
    baselines: Sequence[Baseline],
    *,
    weigh: Literal["metric", "task"] = "metric",
) -> float:
    r"""Mean relative loss against single-task learning, in percent; lower is better.

    .. math:: \Delta m = \frac{100}{K} \sum_k (-1)^{s_k} \frac{M_k - B_k}{|B_k|},
        \qquad s_k = 1 \text{ where a higher value is better.}

    Args:
        values: value of every metric that has a baseline, by metric name; other entries are ignored.
        baselines: single-task values; every one has to be matched.
        weigh: ``"metric"`` gives each metric the weight 1/K, as the published tables do (segmentation with two
            metrics counts twice as much as a task with one); ``"task"`` averages within each task first.

    Returns:
        Percent; 0 where all values equal their baselines, negative where the multi-task model is better.

    Raises:
        InvalidInputError: no baseline, a missing or non-finite value, or a baseline of zero.

    References:
        Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, section 4.

    Example:
        >>> accuracy = Metric("accuracy", "left", "%", higher_is_better=True)
        >>> error = Metric("error", "image", "", higher_is_better=False)
        >>> single = [Baseline(accuracy, 80.0, "own runs"), Baseline(error, 0.5, "own runs")]
        >>> round(delta_m({"accuracy": 76.0, "error": 0.55}, single), 6)
        7.5
    """
    one_of("weigh", weigh, ("metric", "task"))
    if not baselines:
        raise InvalidInputError("`baselines` must not be empty, got none. Run the single-task models first.")
    by_task: dict[str, list[float]] = {}
    for baseline in baselines:
        name = baseline.metric.name
        if name not in values:
            raise InvalidInputError(
                f"`values` must hold every metric that has a baseline, got {sorted(values)} without {name!r}."
            )
        value = values[name]
        if not math.isfinite(value) or not math.isfinite(baseline.value) or baseline.value == 0:
            raise InvalidInputError(
                f"`values` and `baselines` must be finite and baselines not zero, got {value!r} against "
                f"{baseline.value!r} for {name!r}."
            )
        # By its size: with a negative value in the denominator, as of a log-likelihood, better would count as worse.
        loss = -baseline.metric.sign * (value - baseline.value) / abs(baseline.value)
        by_task.setdefault(baseline.metric.task, []).append(loss)
    if weigh == "task":
        # `fsum` rounds once, so that Δm does not depend on the order of the metrics.
        terms = [math.fsum(losses) / len(losses) for losses in by_task.values()]
    else:
        terms = [loss for losses in by_task.values() for loss in losses]
    return 100.0 * math.fsum(terms) / len(terms)


def delta_m_or_nan(values: Mapping[str, float], baselines: Sequence[Baseline]) -> float:
    """Δm, or NaN where a value is not finite: for a run that has diverged beside others that have not.

    Args:
        values: as for :func:`delta_m`.
        baselines: likewise.

    Raises:
        InvalidInputError: as :func:`delta_m`, but for a value that is not finite.
    """
    is_finite = all(math.isfinite(values.get(baseline.metric.name, 0.0)) for baseline in baselines)
    return delta_m(values, baselines) if is_finite else math.nan


def ranks(values: Sequence[float], *, higher_is_better: bool, ties: Ties = "competition") -> list[float]:
    """Rank of each value, 1 for the best.

    Args:
        values: finite numbers, one per method.
        higher_is_better: direction of the metric.
        ties: ``"competition"``: equal values share the better rank and the next one skips (1, 2, 2, 4);
            ``"dense"``: the next one does not skip (1, 2, 2, 3); ``"average"``: they share the mean (1, 2.5, 2.5, 4).

    Returns:
        One rank per value, in the order given.

    Raises:
        InvalidInputError: a value is not finite.

    Example:
        >>> ranks([0.9, 0.7, 0.9], higher_is_better=True)
        [1.0, 3.0, 1.0]
    """
    one_of("ties", ties, ("competition", "dense", "average"))
    if not all(math.isfinite(value) for value in values):
        raise InvalidInputError(f"`values` must be finite, got {list(values)}. Leave the failed runs out.")
    keys = [-value if higher_is_better else value for value in values]
    better = {key: sum(other < key for other in keys) for key in keys}
    if ties == "dense":
        distinct = sorted(set(keys))
        return [1.0 + distinct.index(key) for key in keys]
    if ties == "average":
        return [1.0 + better[key] + (keys.count(key) - 1) / 2 for key in keys]
    return [1.0 + better[key] for key in keys]


def mean_rank(
    table: Mapping[str, Mapping[str, float]], metrics: Sequence[Metric], *, ties: Ties = "competition"
) -> dict[str, float]:
    """Mean over the metrics of each method's rank; lower is better.

    Methods are ranked per metric, not per task. The single-task row does not belong in ``table``.

    Args:
        table: method → metric name → value; every method needs every metric.
        metrics: the metrics to rank by, with their directions.
        ties: see :func:`ranks`.

    Returns:
        Method → mean rank, in the order of ``table``.

    Raises:
        InvalidInputError: no metric, or a method without one of them.

    Note:
        Competition ranks reproduce the published tables of MARIGOLD up to ties, which their authors broke by
        hand; SDMGrad's released script ranks densely and compares the printed values as strings.

    Example:
        >>> accuracy = Metric("accuracy", "left", "%", higher_is_better=True)
        >>> mean_rank({"LS": {"accuracy": 90.0}, "MGDA": {"accuracy": 85.0}}, [accuracy])
        {'LS': 1.0, 'MGDA': 2.0}
    """
    if not metrics:
        raise InvalidInputError("`metrics` must not be empty, got none.")
    for method, row in table.items():
        missing = [metric.name for metric in metrics if metric.name not in row]
        if missing:
            raise InvalidInputError(f"`table` must hold every metric of every method, {method!r} lacks {missing}.")
    total = dict.fromkeys(table, 0.0)
    for metric in metrics:
        column = [table[method][metric.name] for method in table]
        for method, rank in zip(table, ranks(column, higher_is_better=metric.higher_is_better, ties=ties), strict=True):
            total[method] += rank
    return {method: value / len(metrics) for method, value in total.items()}
