"""From runs to tables: groups over seeds, Δm with its interval, mean rank, what the teleports did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from scipy.special import stdtrit

from mtl_benchmarks.baselines import own_baselines
from mtl_benchmarks.components import make_benchmark
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.files import entries, exists
from mtl_benchmarks.marker import LOCK, MARKER, kind_of
from mtl_benchmarks.metrics import Metric, delta_m, mean_rank
from mtl_benchmarks.runner import RunResult, distinct, load_result
from mtl_core import ResultsDirectoryError

__all__ = ["Estimate", "Group", "Moves", "comparison_table", "find_runs", "group_runs", "moves", "moves_table"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean.
        half_width: half the 95 % interval by Student's t over the seeds; None for one seed.
    """

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per seed.

        Example:
            >>> round(Estimate.of([1.0, 2.0, 3.0]).half_width, 3)
            2.484
        """
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None)
        error = statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, error * float(stdtrit(len(values) - 1, 0.975)))

    def brief(self) -> str:
        """Two decimals, or powers of ten where a run has diverged."""
        return self.text(2) if abs(self.mean) < 1e4 else f"{self.mean:.1e}"

    def text(self, digits: int) -> str:
        """As tables print it."""
        spread = "" if self.half_width is None else f" ±{self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


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


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: method and teleport, with whatever else tells the group from its neighbours.
        config: the configuration of the first.
        runs: by seed.
        values: the reported metrics.
        delta_m: against single-task runs by the same code, in percent; None without them. Its interval is over the
            seeds of the multi-task runs; the baselines are held fixed.
        moves: what the teleports did.
        seconds: training time of one run.
    """

    label: str
    config: RunConfig
    runs: tuple[RunResult, ...]
    values: Mapping[str, Estimate]
    delta_m: Estimate | None
    moves: Moves | None
    seconds: float


def find_runs(paths: Iterable[str | Path], *, siblings: bool = True) -> tuple[list[RunResult], list[RunResult]]:
    """The complete runs behind paths.

    Args:
        paths: directories of runs, or collections, which stand for all their runs.
        siblings: also look for single-task runs in the collections that hold the given runs.

    Returns:
        The runs that were asked for, and the others that were found beside them.

    Raises:
        ResultsDirectoryError: a path is neither, or no run in it is complete.
    """
    asked: dict[Path, RunResult] = {}
    beside: dict[Path, RunResult] = {}
    for given in paths:
        path = Path(given)
        kind = kind_of(path)
        if kind == "run":
            asked[path.resolve()] = load_result(path)
            parent = path.resolve().parent
        elif kind == "collection":
            parent = path.resolve()
            for directory in _complete(parent):
                asked[directory] = load_result(directory)
        else:
            raise ResultsDirectoryError(f"`runs` must be directories written by mtl-bench, got {str(path)!r}.")
        if siblings:
            beside |= {found: load_result(found) for found in _complete(parent) if found not in beside}
    if not asked:
        raise ResultsDirectoryError("`runs` must hold a complete run, got none. Start the broken-off ones again.")
    others = [run for path, run in beside.items() if path not in asked]
    return list(asked.values()), others


def _complete(collection: Path) -> list[Path]:
    found = [collection / name for name in entries(collection) if exists(collection / name / "result.json")]
    # One that has lost its marker is refused where it is read, and not passed over.
    return [path for path in found if exists(path / MARKER) or exists(path / LOCK)]


def group_runs(runs: Sequence[RunResult], *, others: Sequence[RunResult] = ()) -> list[Group]:
    """Group runs that differ in their seed alone. A copy of a run counts once: it is no second seed.

    Args:
        runs: complete runs.
        others: more runs, in which to look for single-task baselines.

    Returns:
        Groups in the order of their first runs, single-task groups last.

    Raises:
        ResultsDirectoryError: two runs of one configuration and seed have other values.
    """
    grouped: dict[str, list[RunResult]] = {}
    for run in distinct(runs):
        grouped.setdefault(run.config.digest(with_seed=False), []).append(run)
    members = sorted(grouped.values(), key=lambda group: group[0].config.is_single_task)
    labels = _labels([group[0].config for group in members])
    pool = [*runs, *others]
    return [_group(label, group, pool) for label, group in zip(labels, members, strict=True)]


def _group(label: str, runs: Sequence[RunResult], pool: Sequence[RunResult]) -> Group:
    ordered = tuple(sorted(runs, key=lambda run: run.config.seed))
    config = ordered[0].config
    baselines = own_baselines(config, pool)
    return Group(
        label=label,
        config=config,
        runs=ordered,
        values={name: Estimate.of([run.values[name] for run in ordered]) for name in ordered[0].values},
        delta_m=Estimate.of([delta_m(run.values, baselines) for run in ordered]) if baselines else None,
        moves=moves(ordered),
        seconds=statistics.fmean(run.seconds for run in ordered),
    )


def _labels(configs: Sequence[RunConfig]) -> list[str]:
    """Labels that differ: where two would be equal, the options in which they differ are added."""
    labels: list[str] = []
    for config in configs:
        twins = [other for other in configs if other.label == config.label]
        flat = [_flat(other.as_group()) for other in twins]
        own = _flat(config.as_group())
        differing = [key for key in own if any(other.get(key) != own[key] for other in flat)]
        extra = ", ".join(f"{key.replace('.options', '')}={own[key]}" for key in differing)
        labels.append(f"{config.label} ({extra})" if extra else config.label)
    return labels


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [_flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}


def comparison_table(groups: Sequence[Group], *, title: str) -> Table:
    """Per-task metrics, Δm, mean rank and training seconds of one run; one row per group.

    Mean ranks are competition ranks among the groups that train all tasks.
    """
    metrics = make_benchmark(groups[0].config.benchmark).metrics
    full = [group for group in groups if not group.config.is_single_task]
    rank = _mean_ranks(full, metrics)
    table = _table(title)
    table.add_column("method", no_wrap=True)
    table.add_column("seeds", justify="right")
    for metric in metrics:
        table.add_column(_heading(metric), justify="right", no_wrap=True)
    table.add_column("Δm\n% ↓", justify="right", no_wrap=True)
    table.add_column("mean\nrank ↓", justify="right")
    table.add_column("train\nseconds", justify="right")
    for group in groups:
        delta = "" if group.delta_m is None else group.delta_m.text(2)
        ranked = f"{rank[group.label]:.2f}" if group.label in rank else ""
        cells = [_value(group, metric) for metric in metrics]
        table.add_row(group.label, str(len(group.runs)), *cells, delta, ranked, f"{group.seconds:.1f}")
    return table


def moves_table(groups: Sequence[Group], *, title: str) -> Table | None:
    """What the teleports did, before → after, means over the accepted ones; None where there was none."""
    table = _table(title)
    table.add_column("method", no_wrap=True)
    headings = (
        "teleports\nkept",
        "undone",
        "min cosine\nwith the mean",
        "‖mean gradient‖",
        "drift of\nlosses %",
        "length",
    )
    for heading in (*headings, "seconds\neach"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        found = group.moves
        if found is None:
            continue
        row = [group.label, str(found.accepted), str(found.rejected)]
        if found.accepted:
            row += [
                f"{found.min_cosine[0]:.3f} → {found.min_cosine[1]:.3f}",
                f"{found.mean_norm[0]:.3f} → {found.mean_norm[1]:.3f}",
                f"{100 * found.drift:.2f}",
                f"{found.length:.3f}",
                f"{found.seconds:.3f}",
            ]
        table.add_row(*row)
    return table if table.row_count else None


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))


def _heading(metric: Metric) -> str:
    first, _, rest = metric.name.partition("_")
    arrow = "↑" if metric.higher_is_better else "↓"
    return f"{first}\n{' '.join(word for word in (rest, metric.unit, arrow) if word)}"


def _mean_ranks(groups: Sequence[Group], metrics: Sequence[Metric]) -> dict[str, float]:
    rows = {group.label: {name: value.mean for name, value in group.values.items()} for group in groups}
    finite = all(math.isfinite(rows[label][metric.name]) for label in rows for metric in metrics)
    return mean_rank(rows, metrics) if len(rows) > 1 and finite else {}


def _value(group: Group, metric: Metric) -> str:
    found = group.values.get(metric.name)
    if found is None:
        return ""
    return found.text(2 if metric.unit == "%" else 4)
