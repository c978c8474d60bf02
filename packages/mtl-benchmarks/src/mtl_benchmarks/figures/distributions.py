"""Figures from plain numbers: how a quantity of single steps is distributed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtl_benchmarks.figures.drawing import grid, key_below, panels, plain_log
from mtl_benchmarks.figures.experiments import label_styles, whole_ticks
from mtl_benchmarks.figures.palette import INK, MUTED, SUBTLE, task_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["balance_against_imbalance", "balance_histograms", "progress_by_step"]

_BINS = 25


def balance_histograms(values: Mapping[str, Sequence[float]], *, xlabel: str) -> Figure:
    """Shares of steps by a quantity in [0, 1], a panel each, with the median as a line.

    Args:
        values: heading → one value per step.
        xlabel: what the quantity is.
    """
    figure, axes = panels(len(values), width=3.4, height=2.8)
    for panel, (name, found), style in zip(axes, values.items(), label_styles(values), strict=True):
        weights = [1 / len(found)] * len(found)
        panel.hist(found, bins=_BINS, range=(0, 1), weights=weights, color=style.colour, alpha=0.85)
        panel.axvline(statistics.median(found), color=INK, linestyle="--", linewidth=1.2, label="median")
        panel.set(title=name, xlabel=xlabel, xlim=(0, 1))
        if panel is axes[0]:
            panel.set_ylabel("share of the steps")
        grid(panel)
    key_below(figure, axes)
    return figure


def balance_against_imbalance(points: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """The balance of the tasks against the imbalance ratio, a dot per step and a panel per run.

    Args:
        points: heading → (imbalance ratio, balance).
    """
    figure, axes = panels(len(points), width=3.6, height=3.1)
    for panel, (name, found), style in zip(axes, points.items(), label_styles(points), strict=True):
        ratios, kappas = [ratio for ratio, _ in found], [kappa for _, kappa in found]
        panel.scatter(ratios, kappas, s=10, alpha=0.5, color=style.colour, linewidths=0, label="step")
        plain_log(panel, "x")
        panel.set(title=name, xlabel="largest gradient norm / smallest", ylim=(-0.03, 1.03))
        if panel is axes[0]:
            panel.set_ylabel(r"balance $\kappa = \cos(g_0, g_m)$")
        grid(panel)
    key_below(figure, axes)
    return figure


def progress_by_step(
    points: Mapping[str, Sequence[tuple[int, Sequence[float]]]], tasks: Sequence[str], *, window: int
) -> Figure:
    """Each task's cosine with the update over the steps: dots, and running medians as lines; a panel per method.

    Args:
        points: heading → (step, cosine per task).
        tasks: names, in the benchmark's order.
        window: steps of a running median.
    """
    figure, axes = panels(len(points), width=3.4, height=3.0)
    for panel, (name, found) in zip(axes, points.items(), strict=True):
        steps = [step for step, _ in found]
        panel.axhspan(-1.05, 0.0, color=SUBTLE, alpha=0.5, linewidth=0, label="the update makes the task worse")
        panel.axhline(0.0, color=MUTED, linewidth=0.8)
        for place, task in enumerate(tasks):
            values = [cosines[place] for _, cosines in found]
            colour = task_colour(place)
            panel.scatter(steps, values, s=5, alpha=0.3, color=colour, linewidths=0)
            middle = [statistics.median(values[max(0, k - window) : k + window + 1]) for k in range(len(values))]
            panel.plot(steps, middle, color=colour, linewidth=1.6, label=task)
        panel.set(title=name, xlabel="step", ylim=(-1.05, 1.05))
        if panel is axes[0]:
            panel.set_ylabel("cosine of the task's gradient\nwith the update")
        panel.xaxis.set_major_locator(whole_ticks())
        grid(panel)
    key_below(figure, axes)
    return figure
