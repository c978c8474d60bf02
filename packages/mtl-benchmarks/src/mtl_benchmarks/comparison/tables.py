"""The tables about a comparison: what was reached, differences seed by seed, what was published, what teleports did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from mtl_benchmarks.comparison.estimates import Estimate, paired_difference
from mtl_benchmarks.comparison.groups import Comparison, Group
from mtl_benchmarks.comparison.protocols import differing, printed_protocol, short_name
from mtl_benchmarks.comparison.tabular import Cell, Column, Pair, Row, Table
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.metrics import Baseline, Metric, delta_m_or_nan, difference, mean_rank
from mtl_benchmarks.published import PublishedTable
from mtl_benchmarks.runs.measure import lacking_seeds, listed_seeds, sources
from mtl_core import UnknownNameError

__all__ = ["all_tables", "column_of", "moves_table", "paired_table", "published_rows_table", "result_table"]

_DELTA = Column("delta_m", "Δm", "%", "lower")


def all_tables(comparison: Comparison, *, reference: str | None = None) -> list[Table]:
    """Every table that the comparison has something to say in."""
    found = [
        result_table(comparison),
        *published_rows_table(comparison),
        paired_table(comparison, reference=reference),
        moves_table(comparison),
    ]
    return [table for table in found if table is not None]


def column_of(metric: Metric) -> Column:
    """The column of a metric: percent with two decimals, others with four."""
    better = "higher" if metric.higher_is_better else "lower"
    heading = metric.name.replace("_", " ")
    return Column(metric.name, heading, metric.unit, better, 2 if metric.unit == "%" else 4)  # type: ignore[arg-type]


def result_table(comparison: Comparison) -> Table:
    """Per-task metrics, Δm, mean rank and training seconds of one run; one row per group.

    Mean ranks are competition ranks among the groups that train all tasks of the comparison and have not diverged.
    """
    rank = _mean_ranks(comparison.full, comparison.metrics)
    columns = (
        Column("seeds", "seeds"),
        *(column_of(metric) for metric in comparison.metrics),
        _DELTA,
        Column("mean_rank", "mean rank", "", "lower"),
        Column("seconds", "training", "s", "", 1),
    )
    rows = []
    for group in comparison.groups:
        cells: dict[str, Cell] = {"seeds": len(group.runs), **group.values}
        if math.isfinite(group.seconds):
            cells["seconds"] = group.seconds
        if group.delta_m is not None:
            cells["delta_m"] = group.delta_m
        if group.label in rank:
            cells["mean_rank"] = rank[group.label]
        rows.append(Row(group.label, _kind(group, comparison), cells))
    table = Table("results", comparison.title, columns, tuple(rows), tuple(_result_notes(comparison)))
    return table.without_empty_columns()


def _kind(group: Group, comparison: Comparison) -> Literal["multi-task", "single-task"]:
    return "multi-task" if group.config.tasks == comparison.tasks else "single-task"


def _result_notes(comparison: Comparison) -> list[str]:
    notes = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        notes.append("± is half of the 95 % interval over seeds by Student's t.")
    if comparison.baselines:
        notes.append(f"Δm is over {', '.join(comparison.tasks)}, against {sources(comparison.baselines)}, held fixed.")
    elif comparison.full and make_benchmark(comparison.config.benchmark).has_single_task_runs:
        notes.append(f"No Δm, as {comparison.measure.why}.")
    lacking = lacking_seeds({group.label: [run.config.seed for run in group.runs] for group in comparison.full})
    lost = {g.label: [run.config.seed for run in g.runs if run.has_diverged] for g in comparison.groups}
    named = [f"{label} with {listed_seeds(seeds)}" for label, seeds in lost.items() if seeds]
    if named:
        notes.append(f"Diverged, so that there is no mean: {'; '.join(named)}.")
    return [*notes, *filter(None, [lacking])]


def _mean_ranks(groups: Sequence[Group], metrics: Sequence[Metric]) -> dict[str, float]:
    rows = {group.label: {name: value.mean for name, value in group.values.items()} for group in groups}
    for metric in metrics:  # those that rounding alone tells apart share a rank
        known = sorted((row[metric.name], label) for label, row in rows.items() if metric.name in row)
        for (before, other), (_, label) in pairwise(known):
            if difference(rows[label][metric.name], before) == 0.0:
                rows[label][metric.name] = rows[other][metric.name]
    ranked = [metric for metric in metrics if all(metric.name in row for row in rows.values())]
    # A group that has diverged takes no part: NaN is neither better nor worse than a number.
    finite = {label: row for label, row in rows.items() if all(math.isfinite(row[metric.name]) for metric in ranked)}
    return mean_rank(finite, ranked) if len(finite) > 1 and ranked else {}


def paired_table(comparison: Comparison, *, reference: str | None = None) -> Table | None:
    """Differences from a reference method, taken seed by seed, with intervals by Student's t.

    Args:
        comparison: of several groups.
        reference: label of a group; None: the method alone that stands first, ``ls`` where it is there.

    Returns:
        the table; None where no other group shares two seeds with the reference.

    Raises:
        UnknownNameError: no group has that label.
    """
    groups = comparison.full
    base = _reference(groups, reference)
    if base is None:
        return None
    rows = []
    for group in groups:
        if group is base:
            continue
        cells: dict[str, Cell] = {}
        for metric in comparison.metrics:
            found = paired_difference(group.by_seed(metric.name), base.by_seed(metric.name))
            if found is not None:
                cells |= {metric.name: found, "seeds": found.n}
        found = paired_difference(group.deltas, base.deltas, percent=True)
        if found is not None:
            cells |= {"delta_m": found, "seeds": found.n}
        if cells:
            rows.append(Row(group.label, "difference", cells))
    if not rows:
        return None
    columns = (Column("seeds", "common seeds"), *(column_of(metric) for metric in comparison.metrics), _DELTA)
    title = f"{comparison.title}: minus {base.label}, seed by seed"
    notes = (
        "Means of the differences over the common seeds ± half of the 95 % interval by Student's t.",
        "An interval that holds 0 shows no difference, and of many intervals about one in twenty misses.",
    )
    return Table("differences", title, columns, tuple(rows), notes).without_empty_columns()


def _reference(groups: Sequence[Group], wanted: str | None) -> Group | None:
    if wanted is not None:
        found = next((group for group in groups if group.label == wanted), None)
        if found is None and groups:
            raise UnknownNameError("reference", wanted, [group.label for group in groups])
        return found
    alone = [group for group in groups if group.config.teleport is None]
    return next((group for group in alone if group.config.method.name == "ls"), next(iter(alone), None))


def published_rows_table(comparison: Comparison) -> list[Table]:
    """For each published table that the benchmark declares as its own: the rows of these methods, as printed."""
    problem = make_benchmark(comparison.config.benchmark)
    return [
        table
        for published in problem.published
        if (table := _published_table(comparison, published, problem.metrics)) is not None
    ]


def _published_table(comparison: Comparison, published: PublishedTable, metrics: Sequence[Metric]) -> Table | None:
    wanted = {group.config.label for group in comparison.full}
    problem = make_benchmark(comparison.config.benchmark)
    whole = set(comparison.tasks) == set(problem.tasks)
    names = {printed: own for own, printed in published.metrics.items()}
    rows = []
    for printed, label in published.labels().items():
        if label not in wanted and label != "single task":
            continue
        values = published.rows()[printed]
        cells: dict[str, Cell] = {names[name]: value for name, value in values.items() if name in names}
        if "DeltaM_pct" in values and (comparison.baselines or problem.baselines):
            cells["delta_m"] = values["DeltaM_pct"]
        rows.append(Row(f"{printed} ({label})", "published", cells))
    # The printed single-task row alone says nothing about the methods that were run.
    if not any(row for row in rows if not row.label.endswith("(single task)")):
        return None
    notes = [
        "Printed values of other code on other machines; they take no part in ranks and differences.",
        *published.errors,
    ]
    if problem.baselines and whole:
        rows = [*_single_task_rows(comparison, problem.baselines), *rows, *_against(comparison, problem.baselines)]
        notes.append(
            f"Rows marked 'here' are the runs above; their Δm is against the printed single-task values "
            f"({problem.baselines[0].source}), as the printed Δm is."
        )
    shown = {*published.metrics, *(b.metric.name for b in problem.baselines if whole)}
    columns = (*(column_of(metric) for metric in metrics if metric.name in shown), _DELTA)
    printed_as = printed_protocol(comparison.config, published)
    # Which network single-task runs have is no difference of the rows, and their values stand below as measured.
    changed = [k for k in differing([printed_as, comparison.protocol]) if not k.startswith("baseline_model.")]
    if changed or not whole:
        said = [f"{short_name(k)} {comparison.protocol.get(k)} instead of {printed_as.get(k)}" for k in changed]
        notes.append(f"The runs above have another protocol than this table: {'; '.join(said) or 'other tasks'}.")
    title = f"{comparison.title}: as published, {published.source}"
    return Table("published", title, columns, tuple(rows), tuple(notes)).without_empty_columns()


def _single_task_rows(comparison: Comparison, printed: Sequence[Baseline]) -> list[Row]:
    """Single-task values as printed and, where there are such runs, as measured."""
    rows = [Row("single task, printed", "published", {each.metric.name: each.value for each in printed})]
    if comparison.baselines:
        own: dict[str, Cell] = {each.metric.name: each.value for each in comparison.baselines}
        rows.append(Row("single task, here", "single-task", own))
    return rows


def _against(comparison: Comparison, printed: Sequence[Baseline]) -> list[Row]:
    """The groups that train all tasks, with Δm against printed single-task values."""
    rows = []
    for group in comparison.full:
        deltas = [delta_m_or_nan(run.values, printed) for run in group.runs]
        rows.append(Row(f"{group.label}, here", "multi-task", {**group.values, "delta_m": Estimate.of(deltas)}))
    return rows


def moves_table(comparison: Comparison) -> Table | None:
    """What the teleports did, before → after, means over the accepted ones; None where there was none."""
    rows = []
    for group in comparison.full:
        found = group.moves
        if found is None:
            continue
        cells: dict[str, Cell] = {"kept": found.accepted, "undone": found.rejected, "seconds": found.seconds}
        if found.accepted:
            cells |= {
                "min_cosine": Pair(*found.min_cosine),
                "mean_norm": Pair(*found.mean_norm),
                "drift": 100 * found.drift,
                "length": found.length,
            }
        rows.append(Row(group.label, "multi-task", cells))
    if not rows:
        return None
    columns = (
        Column("kept", "kept"),
        Column("undone", "undone"),
        Column("min_cosine", "smallest cosine with the mean", digits=3),
        Column("mean_norm", "norm of the mean gradient", digits=3),
        Column("drift", "change of the losses", "%"),
        Column("length", "length", digits=3),
        Column("seconds", "each", "s", digits=3),
    )
    notes = ("Means over the teleports that were kept, before → after; seconds over all of them.",)
    return Table("teleports", f"{comparison.title}: teleports", columns, tuple(rows), notes)
