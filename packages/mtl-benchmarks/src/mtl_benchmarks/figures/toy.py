"""The toy problem: paths over its landscape, and where they end in the space of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mtl_benchmarks.benchmarks.toy import STARTS, objectives, optimum, pareto_set
from mtl_benchmarks.figures.drawing import grid, headed, key_below, new_figure
from mtl_benchmarks.figures.palette import ACCENT, INK, MUTED, run_styles
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["by_label", "toy_grid", "toy_losses", "toy_trajectories"]

_MAX_POINTS = 2000
_PATH = "autumn"  # red to yellow, which stand out from the grey contours


def by_label(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs by method and teleport."""
    found: dict[str, list[RunResult]] = {}
    for run in runs:
        found.setdefault(run.config.label, []).append(run)
    return found


def toy_trajectories(rows: Mapping[str, Sequence[RunResult]]) -> Figure:
    """Contours of both losses and their mean with the paths of runs on them, one row per method.

    Args:
        rows: heading → complete runs of the toy problem, all with one scale.
    """
    scale = float(next(iter(rows.values()))[0].config.benchmark.options["scale"])
    axis = torch.linspace(-11, 11, 400, dtype=torch.float64)
    losses = objectives(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1), scale=scale)
    surfaces = ((losses[..., 0], "first loss"), (losses[..., 1], "second loss"), (losses.mean(-1), "mean loss"))
    best = torch.tensor(pareto_set())
    stars = (tuple(best[-1].tolist()), tuple(best[0].tolist()), optimum(scale=scale))
    figure = new_figure(11, 3.6 * len(rows) + 1.3)
    every: list[Axes] = []
    for row, (heading, runs) in enumerate(rows.items()):
        paths = [(RunDirectory.existing(run.directory).read_trace(), run) for run in runs]
        for column, ((surface, name), star) in enumerate(zip(surfaces, stars, strict=True), start=1):
            axes = figure.add_subplot(len(rows), 3, 3 * row + column)
            axes.contour(axis, axis, surface, levels=30, cmap="Greys_r", linewidths=0.6, alpha=0.8)
            axes.plot(best[:, 0], best[:, 1], color="#56B4E9", linewidth=6, alpha=0.6, label="Pareto set", zorder=2)
            for trace, run in paths:
                _draw_path(axes, trace, run)
            axes.plot(
                *star,
                marker="*",
                markersize=13,
                color=INK,
                linestyle="none",
                label="minimum of the loss shown",
                zorder=6,
            )
            axes.set(title=f"{heading}: {name}", xlim=(-11, 11), ylim=(-11, 11), xlabel="$x_1$", ylabel="$x_2$")
            axes.set(xticks=range(-10, 11, 5), yticks=range(-10, 11, 5), aspect="equal")
            axes.title.set_fontsize(9)
            axes.tick_params(labelsize=8)
            every.append(axes)
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(colormaps[_PATH](torch.linspace(0, 0.75, 64).numpy()))
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=every, shrink=min(1.0, 0.9 / len(rows)), aspect=25)
    bar.set_ticks([0, 1], labels=["first\nstep", "last\nstep"], fontsize=8)
    headed(figure, f"Paths on the toy problem (factor {scale:g} on the first loss); lines of equal loss in grey")
    key_below(figure, every)
    return figure


def _draw_path(axes: Axes, trace: Sequence[Sequence[float]], run: RunResult) -> None:
    start = STARTS[int(run.config.benchmark.options["start"])]
    points = [start, *(tuple(point) for point in trace)]
    stride = max(1, len(points) // _MAX_POINTS)
    shown = points[::stride]
    colours = torch.linspace(0, 0.75, len(shown)).tolist()
    axes.scatter([p[0] for p in shown], [p[1] for p in shown], c=colours, cmap=_PATH, vmin=0, vmax=1, s=3, zorder=3)
    for event in run.events:
        if event.get("accepted"):
            # Row k of the trace is the point after step k, and points[k] the one before it.
            before, after = points[event["step"]], points[event["step"] + 1]
            axes.plot(
                [before[0], after[0]],
                [before[1], after[1]],
                color=ACCENT,
                linewidth=1.2,
                marker="o",
                markersize=3,
                markerfacecolor="white",
                markevery=[1],
                label="teleport, to the ring",
                zorder=4,
            )
    axes.plot(*start, marker="o", color=INK, markersize=7, linestyle="none", label="start", zorder=6)


def toy_losses(rows: Mapping[str, Sequence[RunResult]]) -> Figure:
    """Where runs end in the plane of the two losses, beside the images of all Pareto-optimal points.

    Args:
        rows: heading → complete runs of the toy problem, all with one scale.
    """
    runs = [members[0] for members in rows.values()]
    scale = float(runs[0].config.benchmark.options["scale"])
    figure = new_figure(6.8, 5.2)
    axes = figure.add_subplot(1, 1, 1)
    optimal = objectives(torch.tensor(pareto_set(), dtype=torch.float64), scale=scale)
    axes.plot(optimal[:, 0], optimal[:, 1], color="#56B4E9", linewidth=5, alpha=0.6, label="Pareto front", zorder=1)
    styles = run_styles([run.config for run in runs])
    for number, ((heading, members), style) in enumerate(zip(rows.items(), styles, strict=True)):
        for k, run in enumerate(members):
            first, second = run.values["loss_first"], run.values["loss_second"]
            axes.plot(
                first,
                second,
                marker=style.marker,
                markersize=11 - 1.5 * min(number, 4),  # the later inside the earlier, where they end at one place
                markerfacecolor="none",
                markeredgewidth=1.8,
                color=style.colour,
                linestyle="none",
                label=heading if k == 0 else None,
                zorder=3 + number,
            )
    for k in sorted({int(run.config.benchmark.options["start"]) for members in rows.values() for run in members}):
        first, second = objectives(torch.tensor(STARTS[k], dtype=torch.float64), scale=scale).tolist()
        axes.plot(first, second, marker=".", color=MUTED, linestyle="none", label="start")
        axes.annotate(str(k), (first, second), xytext=(4, 4), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set(xlabel="first loss (no unit)", ylabel="second loss (no unit)")
    grid(axes)
    headed(figure, "Toy problem: where the runs end in the space of the losses")
    key_below(figure, [axes])
    return figure


def toy_grid(
    paths: Mapping[tuple[int, str], Sequence[tuple[float, float]]],
    distances: Mapping[tuple[int, str], float],
    *,
    scale: float,
) -> Figure:
    """Many paths, each in a small panel on lines of equal mean loss: a row per start, a column per method.

    Args:
        paths: (start, method) → the points of a path, in order.
        distances: (start, method) → how far its end is from the minimiser of the mean loss.
        scale: factor on the first loss.
    """
    starts, methods = list(dict.fromkeys(s for s, _ in paths)), list(dict.fromkeys(m for _, m in paths))
    axis = torch.linspace(-11, 11, 300, dtype=torch.float64)
    surface = objectives(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1), scale=scale).mean(-1)
    best, minimum = torch.tensor(pareto_set()), optimum(scale=scale)
    figure = new_figure(1.55 * len(methods) + 0.6, 1.62 * len(starts) + 0.9)
    every: list[Axes] = []
    for row, start in enumerate(starts):
        for column, method in enumerate(methods):
            axes = figure.add_subplot(len(starts), len(methods), row * len(methods) + column + 1)
            axes.contour(axis, axis, surface, levels=14, cmap="Greys_r", linewidths=0.5, alpha=0.7)
            axes.plot(best[:, 0], best[:, 1], color="#56B4E9", linewidth=4, alpha=0.6, label="Pareto set", zorder=2)
            x, y = zip(*paths[start, method], strict=True)
            colours = torch.linspace(0, 0.75, len(x)).tolist()
            axes.scatter(x, y, c=colours, cmap=_PATH, vmin=0, vmax=1, s=2, zorder=3)
            axes.plot(x[0], y[0], marker="o", color=INK, markersize=4, linestyle="none", label="start", zorder=6)
            axes.plot(x[-1], y[-1], marker="s", color=ACCENT, markersize=4, linestyle="none", label="end", zorder=6)
            axes.plot(
                *minimum, marker="*", markersize=8, color=INK, linestyle="none", label="minimum of the mean", zorder=5
            )
            axes.set(xlim=(-11, 11), ylim=(-11, 11), aspect="equal", xticks=[], yticks=[])
            plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            far = f"{distances[start, method]:.2g}"
            where: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "va": "bottom", "bbox": plain}
            axes.text(0.03, 0.03, far, fontsize=7, color=INK, zorder=7, **where)
            if row == 0:
                axes.set_title(method, fontsize=9)
            if column == 0:
                axes.set_ylabel(f"start {start}", fontsize=8)
            every.append(axes)
    for said in ("number: distance of the end from it", "$x_1$ to the right, $x_2$ upwards, from −11 to 11"):
        every[0].plot([], [], linestyle="none", label=said)
    key_below(figure, every)
    return figure
