"""Task by task: weights, norms and cosines over time, and the cosine of every pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtl_benchmarks.comparison import Comparison, Group
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.figures.drawing import curve, grid, headed, key_below, panels, time_axis, titled
from mtl_benchmarks.figures.learning import Timeline, series_of, timeline
from mtl_benchmarks.figures.palette import DIVERGING, INK, MANY_TASKS, MUTED, SEQUENTIAL, Style, task_colour
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["QUANTITIES", "cosine_maps", "has_cosines", "has_quantity", "over_time"]


@dataclass(frozen=True)
class Quantity:
    """Something that every task has one of per epoch.

    Attributes:
        text: what it is.
        label: of its axis or colour bar.
        log: whether its scale is logarithmic.
        signed: whether it lies in [-1, 1].
    """

    text: str
    label: str
    log: bool = False
    signed: bool = False


QUANTITIES: Mapping[str, Quantity] = {
    "weight": Quantity("weight of each task", "weight"),
    "norm": Quantity("gradient norm of each task in the shared part", "gradient norm", log=True),
    "cosine": Quantity("cosine of each task's gradient with the mean gradient", "cosine with the mean", signed=True),
}


def has_quantity(group: Group, quantity: str) -> bool:
    """Whether the runs of a group have recorded it: not every method has weights or looks at gradients."""
    return any(key[:2] == ("train", quantity) for run in group.runs for key in series_of(run))


def over_time(comparison: Comparison, quantity: str) -> Figure:
    """One panel per method: a line per task, or with more than eight tasks a row of a heat map per task.

    Lines are means over seeds with bands from least to most; heat maps are means over seeds.

    Args:
        comparison: the groups that have recorded the quantity are drawn.
        quantity: a key of :data:`QUANTITIES`.
    """
    about = QUANTITIES[quantity]
    groups = [group for group in comparison.full if has_quantity(group, quantity)]
    tasks = comparison.tasks
    found = [[_of_tasks(series_of(run), quantity, tasks) for run in group.runs] for group in groups]
    places = timeline(run for group in groups for run in group.runs)
    many = len(tasks) > MANY_TASKS
    height = max(2.7, 0.16 * len(tasks) + 0.7) if many else 2.7
    figure, axes = panels(len(groups), height=height)
    for panel, group, runs in zip(axes, groups, found, strict=True):
        if many:
            _heat_map(figure, panel, runs, places, tasks, about)
        else:
            _lines(panel, runs, places, comparison)
            panel.set_ylabel(about.label)
            if about.log:
                panel.set_yscale("log")
            if not about.log and not about.signed and panel.get_ylim()[0] > 0:
                panel.set_ylim(bottom=0.0)
            if about.signed:
                panel.axhline(0.0, color=MUTED, linewidth=0.8)
            grid(panel)
        titled(panel, group.label)
        time_axis(panel, places.at, places.unit)
        if many:
            panel.set_xlim(*_ends(places))
    headed(figure, f"{comparison.title}: {about.text}")
    if not many:
        key_below(figure, axes)
    return figure


def _of_tasks(
    series: Mapping[tuple[str, str, str], list[float]], quantity: str, tasks: Sequence[str]
) -> list[list[float]]:
    return [series.get(("train", quantity, task), []) for task in tasks]


def _ends(places: Timeline) -> tuple[float, float]:
    """The first evaluation and the last, with half a field beside each."""
    half = 0.5 * (places.at[-1] - places.at[0]) / max(1, len(places.at) - 1) or 0.5
    return places.at[0] - half, places.at[-1] + half


def _lines(panel: Axes, runs: Sequence[Sequence[Sequence[float]]], places: Timeline, comparison: Comparison) -> None:
    order = make_benchmark(comparison.config.benchmark).tasks
    for number, task in enumerate(comparison.tasks):
        curves = [each[number] for each in runs if each[number]]
        shift = 0.1 * (number - (len(comparison.tasks) - 1) / 2)
        # Gaps in those on top: of equal curves, such as weights of 1, all but the last would be hidden.
        dash: Any = "-" if number == 0 else (0, (6.0, 3.0 * number))
        curve(panel, places.at, curves, Style(task_colour(order.index(task)), dash, "o"), task, shift=shift)


def _heat_map(
    figure: Figure,
    panel: Axes,
    runs: Sequence[Sequence[Sequence[float]]],
    places: Timeline,
    tasks: Sequence[str],
    about: Quantity,
) -> None:
    rows = [[_mean(values) for values in zip(*(each[k] for each in runs), strict=False)] for k in range(len(tasks))]
    finite = [value for row in rows for value in row if math.isfinite(value) and (value > 0 or not about.log)]
    settings: dict[str, Any] = {"cmap": DIVERGING, "vmin": -1, "vmax": 1} if about.signed else {"cmap": SEQUENTIAL}
    if about.log and finite:
        from matplotlib.colors import LogNorm

        # A logarithmic scale needs two different ends, which equal values do not give.
        settings["norm"] = LogNorm(min(finite), max(max(finite), 1.0001 * min(finite)))
    elif not about.signed and finite:
        settings |= {"vmin": min(0.0, *finite), "vmax": max(finite)}
    width = max(map(len, rows))
    rows = [row + [math.nan] * (width - len(row)) for row in rows]  # a task that was absent in an epoch
    extent = (*_ends(places), len(tasks) - 0.5, -0.5)
    image = panel.imshow(rows, aspect="auto", interpolation="nearest", extent=extent, **settings)
    _name_rows(panel, tasks)
    bar = figure.colorbar(image, ax=panel, shrink=0.8)
    bar.set_label(about.label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _name_rows(panel: Axes, tasks: Sequence[str]) -> None:
    panel.set_yticks(range(len(tasks)), list(tasks), fontsize=8 if len(tasks) <= 12 else 6)
    panel.tick_params(axis="x", labelsize=8)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def has_cosines(group: Group) -> bool:
    """Whether the runs of a group have recorded the cosines of pairs of tasks."""
    return _mean_cosine_matrix(group.runs, group.config.tasks) is not None


def cosine_maps(comparison: Comparison) -> Figure:
    """The cosine of every pair of task gradients, mean over the recorded epochs and seeds; one panel per method.

    Red pairs pull against each other. Numbers stand in the fields up to eight tasks.
    """
    groups = [group for group in comparison.full if has_cosines(group)]
    tasks = comparison.tasks
    size = min(max(2.9, 0.22 * len(tasks) + 1.4), 9.0)
    figure, axes = panels(len(groups), width=size + 0.5, height=size)
    image = None
    for panel, group in zip(axes, groups, strict=True):
        matrix = _mean_cosine_matrix(group.runs, tasks)
        assert matrix is not None
        image = panel.imshow(matrix, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
        if len(tasks) <= MANY_TASKS:
            for row, values in enumerate(matrix):
                for column, value in enumerate(values):
                    colour = "white" if abs(value) > 0.6 else INK
                    text = "" if math.isnan(value) else f"{value:.2f}"
                    panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        _name_rows(panel, tasks)
        panel.set_xticks(range(len(tasks)), list(tasks), fontsize=8 if len(tasks) <= 12 else 6, rotation=90)
        titled(panel, group.label)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("cosine: −1 opposed, 0 unrelated, 1 aligned", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    headed(figure, f"{comparison.title}: cosine of task gradients, mean over epochs and seeds")
    return figure


def _mean_cosine_matrix(runs: Iterable[RunResult], tasks: Sequence[str]) -> list[list[float]] | None:
    """The cosine of every pair of tasks, mean over the recorded epochs and the runs.

    Args:
        runs: complete runs of these tasks.
        tasks: in the order of rows and columns.

    Returns:
        a symmetric matrix with ones on its diagonal, NaN for a pair that is not recorded; None where nothing is.
    """
    values: dict[frozenset[str], list[float]] = {}
    for run in runs:
        for row in RunDirectory.existing(run.directory).read_cosines():
            values.setdefault(frozenset((row["task"], row["other"])), []).append(float(row["cosine"]))
    if not values:
        return None

    def mean(one: str, other: str) -> float:
        if one == other:
            return 1.0
        found = values.get(frozenset((one, other)), [])
        return math.fsum(found) / len(found) if found else math.nan

    return [[mean(one, other) for other in tasks] for one in tasks]
