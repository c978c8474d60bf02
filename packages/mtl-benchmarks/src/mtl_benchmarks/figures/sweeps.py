"""Figures from plain numbers: what a setting or a method comes to, and what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.figures.drawing import grid, key_below, new_figure, panels
from mtl_benchmarks.figures.experiments import label_styles
from mtl_benchmarks.figures.palette import ACCENT, INK, MUTED, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["estimates_figure", "pairs_of_bars", "sweep_lines", "time_and_memory"]


def sweep_lines(
    points: Mapping[float, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    left: str,
    right: str,
    reference: Sequence[float] = (),
    named: str = "",
    log: bool = False,
) -> Figure:
    """Two quantities against one setting, a panel each, with 95 % intervals.

    Args:
        points: setting → the one quantity per seed, and the other, which begins at zero, per seed or turn.
        xlabel: what the setting is.
        left: label of the first quantity.
        right: label of the other one.
        reference: the first quantity per seed without the setting, drawn as a line.
        named: what that line is.
        log: whether the setting has a logarithmic axis.
    """
    figure, axes = panels(2, width=4.1, height=3.2)
    settings = sorted(points)
    for side, (panel, heading) in enumerate(zip(axes, (left, right), strict=True)):
        found = [Estimate.of(points[setting][side]) for setting in settings]
        style = (Style(ACCENT, "-", "o"), Style(INK, "--", "s"))[side]
        _bars(panel, settings, found, style, heading.partition(" [")[0])
        if log:
            panel.set_xscale("log", base=2)
            panel.minorticks_off()
        panel.set(xlabel=xlabel, xticks=settings, ylabel=heading)
        panel.set_xticklabels([f"{setting:.3g}" for setting in settings])
        if side == 0 and reference:
            panel.axhline(Estimate.of(reference).mean, color=MUTED, linewidth=1.2, label=named)
        if side == 1:
            panel.set_ylim(bottom=0.0)
        grid(panel)
    key_below(figure, axes)
    return figure


def pairs_of_bars(seconds: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, ylabel: str) -> Figure:
    """Seconds without and with teleports, a pair of bars per method.

    Bars are medians, lines go from the smallest to the largest, and the median of the ratios of the same turn stands
    above.

    Args:
        seconds: method → seconds without, and with, turn by turn.
        ylabel: what they are of.
    """
    figure = new_figure(max(5.0, 1.6 + 1.2 * len(seconds)), 4.0)
    axes = figure.add_subplot(1, 1, 1)
    for number, pair in enumerate(seconds.values()):
        for side, values in enumerate(pair):
            middle = statistics.median(values)
            spread = [[middle - min(values)], [max(values) - middle]]
            label = ("without teleports", "with COST")[side] if number == 0 else None
            colour = (MUTED, ACCENT)[side]
            axes.bar(number + 0.4 * (side - 0.5), middle, 0.38, yerr=spread, color=colour, label=label, capsize=3)
        paired = len(pair[0]) == len(pair[1])
        ratio = (
            statistics.median(after / before for before, after in zip(*pair, strict=True))
            if paired
            else statistics.median(pair[1]) / statistics.median(pair[0])
        )
        axes.annotate(f"× {ratio:.2f}", (number, max(map(max, pair))), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(seconds)), list(seconds))
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 1.12 * max(max(map(max, pair)) for pair in seconds.values()))
    grid(axes)
    key_below(figure, [axes])
    return figure


def estimates_figure(
    columns: Mapping[str, Mapping[float | str, Sequence[float]]],
    *,
    ylabel: str,
    log: bool = False,
    chosen: Mapping[str, float | str] | None = None,
    reference: Sequence[float] = (),
    named: str = "",
) -> Figure:
    """One quantity over seeds against several settings, a panel each, all on one scale.

    Args:
        columns: setting → its values → the quantity per seed.
        ylabel: what the quantity is.
        log: whether numeric settings have a logarithmic axis.
        chosen: setting → the value that it has where the others are varied, drawn filled.
        reference: the quantity per seed of what all are compared with, drawn as a line.
        named: what that is.
    """
    figure, axes = panels(len(columns), width=3.2, height=3.0)
    for panel, (setting, values) in zip(axes, columns.items(), strict=True):
        found = {at: Estimate.of(per_seed) for at, per_seed in values.items()}
        numeric = all(isinstance(at, int | float) for at in found)
        places = [at if numeric else k for k, at in enumerate(found)]
        _bars(panel, places, list(found.values()), Style(ACCENT, "-" if numeric else "none", "o"), "mean over seeds")
        for place, (at, estimate) in zip(places, found.items(), strict=True):
            if chosen and chosen.get(setting) == at:
                panel.plot([place], [estimate.mean], marker="D", markersize=9, color=INK, linestyle="none",
                           label="default", zorder=4, markerfacecolor="none", markeredgewidth=1.6)  # fmt: skip
        if reference:
            panel.axhline(Estimate.of(reference).mean, color=MUTED, linewidth=1.2, label=named)
        if numeric and log:
            panel.set_xscale("log")
        if not numeric:
            panel.set_xticks(places, [str(at) for at in found])
            panel.set_xlim(-0.5, len(found) - 0.5)
        panel.set_xlabel(setting)
        grid(panel)
    low, high = (pick(panel.get_ylim()[side] for panel in axes) for side, pick in enumerate((min, max)))
    for panel in axes:
        panel.set_ylim(low, high)
    axes[0].set_ylabel(ylabel)
    axes[0].yaxis.label.set_fontsize(9)
    key_below(figure, axes)
    return figure


def time_and_memory(seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float], *, xlabel: str) -> Figure:
    """Seconds of an epoch and peak memory of each method, from the quickest to the slowest.

    Bars are medians, lines go from the smallest to the largest.

    Args:
        seconds: method → seconds, turn by turn.
        memory: method → how far memory rises, in MiB.
        xlabel: what the seconds are.
    """
    names = sorted(seconds, key=lambda name: statistics.median(seconds[name]))
    figure = new_figure(8.4, 1.4 + 0.28 * len(names))
    places = range(len(names))
    colours = [style.colour for style in label_styles(names)]
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2)
    middle = [statistics.median(seconds[name]) for name in names]
    spread = [
        [m - min(seconds[name]) for m, name in zip(middle, names, strict=True)],
        [max(seconds[name]) - m for m, name in zip(middle, names, strict=True)],
    ]
    left.barh(places, middle, 0.7, xerr=spread, color=colours, ecolor=INK, capsize=2)
    right.barh(places, [memory[name] for name in names], 0.7, color=colours)
    for axes, text in ((left, xlabel), (right, "rise of memory in training [MiB]")):
        axes.set_yticks(places, names if axes is left else [""] * len(names), fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0.0)
        axes.set_xlabel(text)
        grid(axes)
        axes.grid(visible=False, axis="y")
    return figure


def _bars(axes: Axes, at: Sequence[Any], found: Sequence[Estimate], style: Style, label: str) -> None:
    bars = [estimate.half_width or 0.0 for estimate in found]
    look: dict[str, Any] = {"color": style.colour, "linestyle": style.dash, "marker": style.marker, "capsize": 3}
    if any(bars):
        look["yerr"] = bars
    axes.errorbar(at, [estimate.mean for estimate in found], label=label, **look)
