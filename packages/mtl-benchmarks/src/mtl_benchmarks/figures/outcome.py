"""What was reached in the end: Δm task by task, and what it cost in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtl_benchmarks.comparison import Comparison, Estimate, Group
from mtl_benchmarks.figures.drawing import grid, headed, key_below, new_figure
from mtl_benchmarks.figures.learning import heading
from mtl_benchmarks.figures.palette import MUTED, SUBTLE, run_styles
from mtl_benchmarks.metrics import delta_m_or_nan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["delta_by_task", "front", "has_front", "time_and_measure"]


def _task_deltas(comparison: Comparison, group: Group) -> dict[str, Estimate]:
    """Task → Δm over that task's metrics alone; "all" → Δm."""
    found = {"all tasks (Δm)": group.delta_m} if group.delta_m is not None else {}
    for task in comparison.tasks:
        own = [baseline for baseline in comparison.baselines if baseline.metric.task == task]
        if own:
            found[task] = Estimate.of([delta_m_or_nan(run.values, own) for run in group.runs])
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def delta_by_task(comparison: Comparison) -> Figure:
    """How much worse than a model of its own each task has become, in percent: left of zero is better.

    Points are means over seeds, lines their 95 % intervals.

    Args:
        comparison: with baselines.
    """
    groups = comparison.full
    found = [_task_deltas(comparison, group) for group in groups]
    names = list(found[0])
    step = 0.16 * max(2, len(groups)) + 0.12 if len(names) <= 12 else 0.07 * len(groups) + 0.14
    figure = new_figure(7.2, 1.6 + step * len(names))
    axes = figure.add_subplot(1, 1, 1)
    styles = run_styles([group.config for group in groups])
    for number, (group, values) in enumerate(zip(groups, found, strict=True)):
        shift = 0.7 * ((number + 0.5) / len(groups) - 0.5)
        places = [row + shift for row, name in enumerate(names) if name in values]
        shown = [values[name] for name in names if name in values]
        axes.errorbar(
            [estimate.mean for estimate in shown],
            places,
            xerr=[estimate.half_width or 0.0 for estimate in shown],
            color=styles[number].colour,
            marker=styles[number].marker,
            markersize=5 if len(names) <= 12 else 3,
            linestyle="none",
            elinewidth=1,
            label=group.label,
        )
    axes.axvline(0.0, color=MUTED, linewidth=1)
    axes.axhline(0.5, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 12 else 7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("relative loss against a single-task model [%], lower is better")
    grid(axes)
    has_intervals = any(estimate.half_width is not None for values in found for estimate in values.values())
    headed(figure, f"{comparison.title}: Δm by task, {'with 95 % intervals' if has_intervals else 'one seed'}")
    key_below(figure, [axes])
    return figure


def _measures(comparison: Comparison) -> tuple[str, bool, list[tuple[Group, Estimate]]]:
    """Heading, direction and value of what stands for the whole: Δm, or the benchmark's main metric without it."""
    if comparison.baselines:
        found = [(group, group.delta_m) for group in comparison.full if group.delta_m is not None]
        return "Δm [%] ↓", False, [(group, estimate) for group, estimate in found if estimate is not None]
    metric = comparison.measure.metric
    if metric is None:
        return "", False, []
    named = [(group, group.values[metric.name]) for group in comparison.full if metric.name in group.values]
    return heading(metric), metric.higher_is_better, named


def front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """Which points no other is at least as quick and as good as, and better in one; in order of time.

    Args:
        points: (seconds, measure); those whose measure is not finite are passed over.
        higher_is_better: of the measure.

    Example:
        >>> front([(1.0, 5.0), (2.0, 3.0), (3.0, 4.0)], higher_is_better=False)
        [0, 1]
    """
    sign = -1.0 if higher_is_better else 1.0
    # No comparison with NaN holds, so that a run that diverged would beat nothing and be beaten by nothing.
    finite = [k for k, (_, value) in enumerate(points) if math.isfinite(value)]

    def beaten(k: int) -> bool:
        time, value = points[k]
        others = (points[j] for j in finite)
        return any(t <= time and sign * v <= sign * value and (t < time or sign * v < sign * value) for t, v in others)

    return sorted((k for k in finite if not beaten(k)), key=lambda k: points[k])


def has_front(comparison: Comparison) -> bool:
    """Whether there are two groups to compare in time and measure."""
    return len(_measures(comparison)[2]) > 1


def time_and_measure(comparison: Comparison) -> Figure:
    """Training seconds of a run against what it reached; the methods that none beats in both are joined.

    Args:
        comparison: of at least two groups.
    """
    text, better, found = _measures(comparison)
    groups = [group for group, _ in found]
    figure = new_figure(6.8, 4.6)
    axes = figure.add_subplot(1, 1, 1)
    points = [(group.seconds, estimate.mean) for group, estimate in found]
    best = front(points, higher_is_better=better)
    axes.plot(
        [points[k][0] for k in best],
        [points[k][1] for k in best],
        color=SUBTLE,
        linewidth=4,
        solid_capstyle="round",
        label="none is quicker and better",
        zorder=1,
    )
    styles = run_styles([group.config for group in groups])
    for number, (group, estimate) in enumerate(found):
        seconds = [run.seconds for run in group.runs]
        axes.errorbar(
            [group.seconds],
            [estimate.mean],
            xerr=[[group.seconds - min(seconds)], [max(seconds) - group.seconds]],
            yerr=[estimate.half_width or 0.0],
            color=styles[number].colour,
            marker=styles[number].marker,
            markersize=8 if number in best else 6,
            markerfacecolor=styles[number].colour if number in best else "white",
            elinewidth=0.8,
            linestyle="none",
            label=group.label,
            zorder=3,
        )
    axes.set(xlabel="training time of one run [s]", ylabel=text)
    # A linear axis from 0 would press the quick ones together at its left edge.
    if all(time > 0 for time, _ in points) and max(p[0] for p in points) > 20 * min(p[0] for p in points):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    grid(axes)
    headed(figure, f"{comparison.title}: time against {text.split(' [')[0].rstrip(' ↑↓')}, filled where none beats it")
    key_below(figure, [axes])
    return figure
