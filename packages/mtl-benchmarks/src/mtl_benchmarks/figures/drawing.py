"""What all figures share; the only module that imports matplotlib."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mtl_benchmarks.figures.palette import INK, SUBTLE, Style
from mtl_benchmarks.storage.files import write_atomically
from mtl_benchmarks.storage.output import writable_file
from mtl_core import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "curve",
    "grid",
    "headed",
    "key_below",
    "new_figure",
    "panels",
    "plain_log",
    "png",
    "save",
    "time_axis",
    "titled",
]

_DPI = 150
_LETTER = 0.075
"""Inches of one letter of a key or of a panel's title, about."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, apart from any global state of matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        # Not pyplot, which keeps every figure until it is closed and may choose a backend that opens windows.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing figures", "mtl-benchmarks[figures]") from None
    figure = Figure(layout="constrained", figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, by the ending of its name; its folder is made if it does not exist.

    Raises:
        ResultsDirectoryError: it cannot be written; a figure that was there before still is.
    """
    target = writable_file("path", path)
    buffer = io.BytesIO()
    _names_as_they_are(figure)
    figure.savefig(buffer, dpi=_DPI, format=path.suffix.removeprefix("."))
    write_atomically(target, buffer.getvalue(), durable=False)
    return path


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    _names_as_they_are(figure)
    figure.savefig(buffer, dpi=_DPI, format="png")
    return buffer.getvalue()


_FORMULAS = (
    "$x_1$",
    "$x_2$",
    "$L_t$",
    "$L_g$",
    r"$\kappa = \cos(g_0, g_m)$",
    r"$\min_i \cos\varphi_{i0}$",
    r"$\|g_0\|$",
)
"""What the figures of this package set as mathematics."""


def _names_as_they_are(figure: Figure) -> None:
    """Set no other text as mathematics: tasks, units and methods may have a dollar in their names."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # which are made when they are asked for
    for text in figure.findobj(Text):
        rest = text.get_text()
        for formula in _FORMULAS:
            rest = rest.replace(formula, "")
        # Axes write powers of ten so.
        if "$" in rest and "mathdefault" not in rest:
            text.set_parse_math(False)


def panels(n: int, *, width: float = 3.6, height: float = 2.7, extra: float = 0.9) -> tuple[Figure, list[Axes]]:
    """A figure of n panels: three in a row, up to five where there are many, which are then smaller.

    Args:
        n: how many.
        width: inches of one.
        height: inches of one.
        extra: inches above and below all of them, for title and key.
    """
    columns = min(n, 3) if n <= 9 else 4 if n <= 16 else 5
    shrink = 1.0 if n <= 9 else 0.8 if n <= 16 else 0.66
    rows = math.ceil(n / columns)
    # A single panel needs room for the title above and the key below it.
    wide = max(columns * width * shrink, 5.6)
    figure = new_figure(wide, rows * height * shrink + extra)
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(n)]


def headed(figure: Figure, title: str) -> None:
    """The title of the whole figure."""
    figure.suptitle(title, fontsize=11, fontweight="bold", color=INK, wrap=True)


def titled(axes: Axes, title: str) -> None:
    """The title of a panel, in as many lines as its width asks for: labels with options are long."""
    # Not with `root`, which matplotlib 3.9 does not have; there are no figures in figures here.
    figure = cast("Figure", axes.get_figure())
    columns = axes.get_gridspec().ncols if axes.get_gridspec() is not None else 1  # type: ignore[union-attr]
    axes.set_title(_wrapped(title, figure.get_size_inches()[0] / columns - 0.5), fontsize=9)


def _wrapped(text: str, inches: float) -> str:
    """In lines that are no wider than this at the size of a key's letters."""
    return textwrap.fill(text, max(12, int(inches / _LETTER)), break_long_words=False, break_on_hyphens=False)


def grid(axes: Axes) -> None:
    """A light grid behind the data, no box around it."""
    axes.grid(True, color=SUBTLE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.title.set_fontsize(9)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def plain_log(axes: Axes, side: Literal["x", "y"]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 times a power of ten, written as plain numbers."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(LogLocator())
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axis.set_tick_params(which="both", labelsize=8)


def time_axis(axes: Axes, at: Sequence[int], unit: str) -> None:
    """Whole epochs or steps only, from the first evaluation to the last.

    Args:
        axes: whose horizontal axis it is.
        at: where the evaluations stand.
        unit: ``"epoch"`` or ``"step"``.
    """
    from matplotlib.ticker import MaxNLocator

    first, last = min(at), max(at)
    margin = 0.5 if first == last else 0.02 * (last - first)
    axes.set_xlim(first - margin, last + margin)
    if last - first < 6:
        axes.set_xticks(range(first, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(unit)


def curve(
    axes: Axes,
    at: Sequence[int],
    curves: Sequence[Sequence[float]],
    style: Style,
    label: str,
    *,
    shift: float = 0.0,
) -> None:
    """A mean over seeds with a band from the smallest to the largest; for one evaluation a point with a bar.

    Args:
        axes: where.
        at: places of the evaluations.
        curves: one per seed, a value per evaluation; where one ends early the mean is over the others.
        style: its look.
        label: for the key.
        shift: of a single point, where several would lie on each other.
    """
    if not any(curves):
        return
    columns = [[values[k] for values in curves if k < len(values)] for k in range(max(map(len, curves)))]
    known = [[value for value in values if math.isfinite(value)] or [math.nan] for values in columns]
    means = [math.fsum(values) / len(values) for values in known]
    lows, highs = [min(values) for values in known], [max(values) for values in known]
    places = list(at[: len(means)])
    if len(means) == 1:
        bars = [[means[0] - lows[0]], [highs[0] - means[0]]]
        single: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": "none"}
        axes.errorbar([places[0] + shift], means, bars, capsize=3, label=label, **single)
        return
    every = 1 if len(means) <= 12 else len(means) // 8
    look: dict[str, Any] = {"color": style.colour, "linestyle": style.dash, "linewidth": 1.5, "label": label}
    axes.plot(places, means, marker=style.marker, markersize=4, markevery=every, **look)
    if len(curves) > 1:
        axes.fill_between(places, lows, highs, color=style.colour, alpha=0.15, linewidth=0)


def key_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One key for all panels, below them: what is drawn in several of them stands in it once."""
    found: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not found:
        return
    width, height = figure.get_size_inches()
    labels = [_wrapped(label, width - 0.9) for label in found]
    # As many columns as fit beside each other at this size of letters.
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(len(found), int(width / (_LETTER * longest + 0.55))))
    # Two rows of them stand in the room that a figure has below its panels; more make it higher, the panels stay.
    lines = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns)
    figure.set_size_inches(width, height + 0.16 * max(0, lines - 2))
    figure.legend(list(found.values()), labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
