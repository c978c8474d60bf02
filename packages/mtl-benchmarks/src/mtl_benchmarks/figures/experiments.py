"""Figures from plain numbers: of conflict, and of what teleports do about it.

Every function takes numbers and gives a figure; where the numbers come from is not its business. Reports of a loop of
one's own are drawn by :mod:`mtl_benchmarks.figures.analysis`, recorded runs by :mod:`mtl_benchmarks.paper_figures`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl_benchmarks.figures.drawing import grid, headed, key_below, new_figure, panels, plain_log
from mtl_benchmarks.figures.palette import ACCENT, INK, MUTED, SUBTLE, Style, method_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "before_after_by_task",
    "before_after_means",
    "conflict_scatter",
    "label_styles",
    "search_lines",
    "share_lines",
    "whole_ticks",
]

_OPPOSED, _ALIGNED = "#D55E00", "#009E73"
"""Backdrops below and above a cosine of zero; the line between them and the words in the key say the same."""


def whole_ticks() -> Any:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


def label_styles(names: Iterable[str]) -> list[Style]:
    """The look of methods by labels such as ``"fairgrad (alpha 2) + cost"``; equal ones differ in their dash."""
    found: list[Style] = []
    for name in names:
        method, _, teleport = name.lower().partition(" + ")
        method = method.partition(" (")[0]  # options stand behind it
        twin = 0
        while (style := method_style(method, teleport or None, twin=twin)) in found and twin < 6:
            twin += 1
        found.append(style)
    return found


def conflict_scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    moves: Mapping[str, Sequence[tuple[float, float, float, float]]] | None = None,
) -> Figure:
    """The weakest task's cosine with the mean gradient against the mean loss, a dot per step and a panel per method.

    Args:
        points: method → (mean loss, cosine) of its steps.
        moves: method → (loss, cosine) before and after each teleport, drawn as arrows.
    """
    figure, axes = panels(len(points), width=3.4, height=3.1, extra=1.1)
    for panel, (name, found), style in zip(axes, points.items(), label_styles(points), strict=True):
        low, high = min([-0.15, *(c for _, c in found)]), max([0.15, *(c for _, c in found)])
        moved = (moves or {}).get(name, ())
        if moved:
            low, high = (f(e, *(c for move in moved for c in move[1::2])) for f, e in ((min, low), (max, high)))
        pad = 0.06 * (high - low)
        panel.set_ylim(low - pad, high + pad)
        panel.axhspan(low - pad, 0.0, color=_OPPOSED, alpha=0.10, linewidth=0, label="conflict: cosine below 0")
        panel.axhspan(0.0, high + pad, color=_ALIGNED, alpha=0.10, linewidth=0, label="no conflict")
        panel.axhline(0.0, color=INK, linewidth=0.6)
        panel.scatter(
            [loss for loss, _ in found],
            [cosine for _, cosine in found],
            s=10,
            alpha=0.55,
            color=style.colour,
            linewidths=0,
            label=f"step of {name}" if len(points) == 1 else "step",
        )
        for number, (loss, cosine, later, better) in enumerate(moved):
            look = {"arrowstyle": "->", "color": INK, "linestyle": "--", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
            panel.annotate("", (later, better), (loss, cosine), arrowprops=look, zorder=4)
            label = "teleport" if number == 0 else None
            panel.plot([loss], [cosine], color=INK, linestyle="--", marker="o", markersize=3, linewidth=1, label=label)
        panel.set(title=name, xlabel="mean loss of a step")
        if panel is axes[0]:
            panel.set_ylabel("cosine of the weakest task\nwith the mean gradient")
        panel.locator_params(axis="x", nbins=5)
        grid(panel)
    key_below(figure, axes)
    return figure


def share_lines(
    lines: Mapping[str, Sequence[tuple[int, float]]], styles: Sequence[Style], *, ylabel: str, title: str | None = None
) -> Figure:
    """Shares by epoch, one line each.

    Args:
        lines: label → (epoch, share in [0, 1]).
        styles: one per line.
        ylabel: what the share is of.
        title: of the figure, or None.
    """
    figure = new_figure(5.8, 4.0)
    axes = figure.add_subplot(1, 1, 1)
    for (name, values), style in zip(lines.items(), styles, strict=True):
        look: dict[str, Any] = {
            "color": style.colour, "linestyle": style.dash, "marker": style.marker, "markersize": 4,
        }  # fmt: skip
        axes.plot([epoch for epoch, _ in values], [share for _, share in values], label=name, **look)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=(-0.02, 1.02))
    axes.xaxis.set_major_locator(whole_ticks())
    grid(axes)
    if title:
        headed(figure, title)
    key_below(figure, [axes])
    return figure


def search_lines(changes: Sequence[float], growth: Sequence[float], *, every: int = 1) -> Figure:
    """The two terms of a teleport's objective along its search.

    Args:
        changes: :math:`L_t` at each point.
        growth: :math:`L_g` over its start at each point; NaN where it was not looked at.
        every: points between two on the same batch: means over so many are drawn as lines.
    """
    figure = new_figure(5.8, 4.0)
    axes = figure.add_subplot(1, 1, 1)
    beside = axes.twinx()
    sides = (
        (axes, changes, Style(ACCENT, "-", "o"), "$L_t$, mean absolute change of the losses"),
        (beside, growth, Style(_OPPOSED, "--", "s"), "$L_g$ over its start, sharpness (right)"),
    )
    for side, values, style, text in sides:
        at = range(len(values))
        if every > 1:
            side.plot(at, values, color=style.colour, marker=style.marker, markersize=2.5, linestyle="none", alpha=0.4)
            means = [_mean(values[k : k + every]) for k in range(0, len(values) - every + 1, every)]
            at = range(every - 1, every * len(means), every)
            values, text = means, f"{text}, mean of {every} batches"
        side.plot(at, values, color=style.colour, marker=style.marker, markersize=4, linestyle=style.dash, label=text)
        unit = " [as the losses]" if side is axes else ""
        side.set_ylabel(text.partition(",")[0] + unit, color=style.colour, fontsize=9)
        side.tick_params(labelsize=8)
    axes.set(xlabel="step of the adapter")
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(whole_ticks())
    grid(axes)
    axes.yaxis.label.set_color(ACCENT)
    key_below(figure, [axes, beside])
    return figure


def before_after_by_task(
    values: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    order: Sequence[int],
    signed: str,
    xlabel: str,
) -> Figure:
    """Quantities of every task before and after each teleport: a row per quantity, a column per task.

    Args:
        values: quantity → task → (before, after), one value per teleport.
        order: where the teleports stand on the horizontal axis.
        signed: the quantity that lies in [-1, 1]; the others have a logarithmic axis.
        xlabel: what ``order`` is.
    """
    tasks = list(next(iter(values.values())))
    figure = new_figure(max(5.6, 2.7 * len(tasks) + 0.4), 2.4 * len(values) + 0.7)
    every: list[Axes] = []
    for row, (quantity, by_task) in enumerate(values.items()):
        for column, task in enumerate(tasks):
            axes = figure.add_subplot(len(values), len(tasks), row * len(tasks) + column + 1)
            before, after = by_task[task]
            axes.vlines(order, before, after, color=SUBTLE, linewidth=1.2, zorder=1)
            axes.scatter(order, before, s=18, color=MUTED, label="before", zorder=2)
            axes.scatter(order, after, s=20, color=ACCENT, marker="^", label="after", zorder=3)
            if quantity == signed:
                axes.axhline(0.0, color=INK, linewidth=0.7)
                axes.set_ylim(-1.05, 1.05)
            elif all(value > 0 for value in (*before, *after)):
                plain_log(axes, "y")
            if row == 0:
                axes.set_title(task)
            if row == len(values) - 1:
                axes.set_xlabel(xlabel)
            if column == 0:
                axes.set_ylabel(quantity)
            axes.xaxis.set_major_locator(whole_ticks())
            grid(axes)
            axes.tick_params(which="both", labelsize=7)
            every.append(axes)
    key_below(figure, every)
    return figure


def before_after_means(
    values: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    order: Sequence[int],
    signed: str,
    xlabel: str,
) -> Figure:
    """As :func:`before_after_by_task`, for many tasks: the median over the tasks, with a line from least to most.

    Args:
        values: quantity → task → (before, after), one value per teleport.
        order: where the teleports stand on the horizontal axis.
        signed: the quantity that lies in [-1, 1]; the others have a logarithmic axis.
        xlabel: what ``order`` is.
    """
    figure, axes = panels(len(values), width=4.2, height=3.2)
    for panel, (quantity, by_task) in zip(axes, values.items(), strict=True):
        for side, (label, colour, marker) in enumerate((("before", MUTED, "o"), ("after", ACCENT, "^"))):
            columns = [sorted(pair[side][k] for pair in by_task.values()) for k in range(len(order))]
            middle = [statistics.median(column) for column in columns]
            spread = [
                [m - column[0] for m, column in zip(middle, columns, strict=True)],
                [column[-1] - m for m, column in zip(middle, columns, strict=True)],
            ]
            at = [place + 0.15 * (2 * side - 1) for place in order]
            panel.errorbar(at, middle, spread, color=colour, marker=marker, linestyle="none", elinewidth=1, label=label)
        if quantity == signed:
            panel.axhline(0.0, color=INK, linewidth=0.7)
            panel.set_ylim(-1.05, 1.05)
        elif all(value > 0 for pair in by_task.values() for side in pair for value in side):
            plain_log(panel, "y")
        panel.set(xlabel=xlabel, ylabel=f"{quantity}, median and range of {len(by_task)} tasks")
        panel.xaxis.set_major_locator(whole_ticks())
        grid(panel)
    key_below(figure, axes)
    return figure


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
