"""Figures of runs; the only module that imports matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtl_benchmarks.benchmarks.toy import STARTS, objectives, optimum
from mtl_benchmarks.components import make_benchmark
from mtl_benchmarks.report import Group, group_runs
from mtl_benchmarks.results import RunDirectory
from mtl_benchmarks.runner import RunResult
from mtl_core import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["by_label", "draw_all", "learning_curves", "teleport_effects", "toy_trajectories"]

_MAX_POINTS = 2000


def _figure(**settings: Any) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing figures", "mtl-benchmarks[figures]") from None
    figure = Figure(layout="constrained", **settings)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def draw_all(runs: Sequence[RunResult], directory: Path) -> list[Path]:
    """Every figure that the runs have data for.

    Args:
        runs: complete runs, of any benchmarks.
        directory: where the files go; made if it does not exist.

    Returns:
        The files written.
    """
    written = []
    by_benchmark: dict[str, list[RunResult]] = {}
    for run in runs:
        by_benchmark.setdefault(run.config.benchmark.file_name, []).append(run)
    for name, members in by_benchmark.items():
        full = [run for run in members if not run.config.is_single_task]
        if not full:
            continue
        if name == "toy":
            for scale in dict.fromkeys(run.config.benchmark.options["scale"] for run in full):
                chosen = [run for run in full if run.config.benchmark.options["scale"] == scale]
                written.append(toy_trajectories(by_label(chosen), directory / f"toy-scale-{scale:g}.png"))
            continue
        groups = group_runs(full, others=members)
        written.append(learning_curves(groups, directory / f"{name}-learning.png"))
        if any(run.events for run in full):
            written.append(teleport_effects(groups, directory / f"{name}-teleports.png"))
    return written


def by_label(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs by method and teleport."""
    found: dict[str, list[RunResult]] = {}
    for run in runs:
        found.setdefault(run.config.label, []).append(run)
    return found


def toy_trajectories(rows: Mapping[str, Sequence[RunResult]], path: Path) -> Path:
    """Contours of both losses and their mean with the paths of runs on them, one row per method.

    Paths go from red to yellow with time; black dots are the starts, the grey line is the Pareto set, black stars are
    the minima. A teleport is a blue segment with a ring at its end.

    Args:
        rows: heading → complete runs of the toy problem, all with one scale.
        path: the file to write.

    Returns:
        ``path``.
    """
    scale = float(next(iter(rows.values()))[0].config.benchmark.options["scale"])
    axis = torch.linspace(-11, 11, 500, dtype=torch.float64)
    losses = objectives(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1), scale=scale)
    surfaces = ((losses[..., 0], "$L_1$"), (losses[..., 1], "$L_2$"), (losses.mean(-1), "mean"))
    stars = ((7.0, -8.434460), (-7.0, -8.434460), optimum(scale=scale))
    figure = _figure(figsize=(12, 4 * len(rows)))
    for row, (heading, runs) in enumerate(rows.items()):
        paths = [(RunDirectory.existing(run.directory).read_trace(), run) for run in runs]
        for column, ((surface, name), star) in enumerate(zip(surfaces, stars, strict=True), start=1):
            axes = figure.add_subplot(len(rows), 3, 3 * row + column)
            axes.contour(axis, axis, surface, levels=30, cmap="viridis", linewidths=0.7)
            axes.plot([-7, 7], [-8.3552, -8.3552], color="grey", linewidth=6, alpha=0.6, zorder=2)
            axes.plot(*star, marker="*", color="black", markersize=14, zorder=6)
            for trace, run in paths:
                _draw_path(axes, trace, run)
            axes.set(title=f"{heading}: {name}", xlim=(-11, 11), ylim=(-11, 11), xlabel="$x_1$", ylabel="$x_2$")
            axes.set(xticks=range(-10, 11, 5), yticks=range(-10, 11, 5))
    return _save(figure, path)


def _draw_path(axes: Axes, trace: Sequence[Sequence[float]], run: RunResult) -> None:
    start = STARTS[int(run.config.benchmark.options["start"])]
    points = [start, *(tuple(point) for point in trace)]
    stride = max(1, len(points) // _MAX_POINTS)
    shown = points[::stride]
    colours = torch.linspace(0, 0.75, len(shown)).tolist()
    axes.scatter([p[0] for p in shown], [p[1] for p in shown], c=colours, cmap="autumn", vmin=0, vmax=1, s=2, zorder=3)
    for event in run.events:
        if event.get("accepted"):
            # Row k of the trace is the point after step k, and points[k] the one before it.
            before, after = points[event["step"]], points[event["step"] + 1]
            axes.plot([before[0], after[0]], [before[1], after[1]], color="tab:blue", linewidth=1.2, zorder=4)
            axes.plot(*after, marker="o", markersize=3, markerfacecolor="none", markeredgecolor="tab:blue", zorder=5)
    axes.plot(*start, marker="o", color="black", markersize=7, zorder=6)


def _series(run: RunResult) -> dict[tuple[str, str], list[float]]:
    """(split, metric) → value per epoch."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in RunDirectory.existing(run.directory).read_metrics():
        name = f"loss_{row['task']}" if row["metric"] == "loss" else row["metric"]
        found.setdefault((row["split"], name), []).append(float(row["value"]))
    return found


def learning_curves(groups: Sequence[Group], path: Path) -> Path:
    """Test metrics per epoch and, where it is known, how often dominated conflict occurred.

    Lines are means over seeds, bands go from the smallest to the largest.

    Args:
        groups: multi-task groups of one benchmark.
        path: the file to write.

    Returns:
        ``path``.
    """
    metrics = make_benchmark(groups[0].config.benchmark).metrics
    panels: dict[tuple[str, str], str] = {
        ("test", metric.name): f"{metric.name.replace('_', ' ')} {f'[{metric.unit}]' if metric.unit else ''}"
        for metric in metrics
    }
    panels |= {
        ("train", "dominated_conflict"): "share of steps with dominated conflict",
        ("train", "imbalance"): "max‖g‖ / min‖g‖",
    }
    figure = _figure(figsize=(3.4 * len(panels), 3.2))
    series = {group.label: [_series(run) for run in group.runs] for group in groups}
    for number, (key, heading) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for group in groups:
            _band(axes, [each[key] for each in series[group.label] if key in each], group.label)
        axes.set(title=heading, xlabel="epoch")
        axes.title.set_fontsize(9)
        if number == 1:
            axes.legend(fontsize=8)
    return _save(figure, path)


def _band(axes: Axes, curves: Sequence[Sequence[float]], label: str) -> None:
    if not curves:
        return
    by_epoch = list(zip(*curves, strict=True))
    epochs = range(1, len(by_epoch) + 1)
    (line,) = axes.plot(epochs, [statistics.fmean(values) for values in by_epoch], label=label)
    lows, highs = [min(values) for values in by_epoch], [max(values) for values in by_epoch]
    axes.fill_between(epochs, lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)


def teleport_effects(groups: Sequence[Group], path: Path) -> Path:
    """Conflict, gradient norm and losses before and after each accepted teleport.

    Args:
        groups: groups of one benchmark; those without teleports are left out.
        path: the file to write.

    Returns:
        ``path``.
    """
    figure = _figure(figsize=(11, 3.6))
    pairs = (
        ("min_cosine", "smallest cosine with the mean gradient"),
        ("mean_norm", "norm of the mean gradient"),
    )
    moved = [group for group in groups if group.moves is not None]
    for number, (name, heading) in enumerate(pairs, start=1):
        axes = figure.add_subplot(1, 3, number)
        both = []
        for group in moved:
            events = [event for run in group.runs for event in run.events if event.get("accepted")]
            before = [event[f"{name}_before"] for event in events]
            after = [event[f"{name}_after"] for event in events]
            axes.scatter(before, after, s=14, alpha=0.7, label=group.label)
            both += [*before, *after]
        if both:
            axes.plot([min(both), max(both)], [min(both), max(both)], color="grey", linewidth=0.8)
        axes.set(title=heading, xlabel="before", ylabel="after")
        axes.title.set_fontsize(9)
        axes.legend(fontsize=8)
    axes = figure.add_subplot(1, 3, 3)
    axes.hist([_drifts(group) for group in moved], bins=20, label=[group.label for group in moved])
    axes.set(title="relative change of the losses by a teleport", xlabel="percent", ylabel="teleports")
    axes.title.set_fontsize(9)
    return _save(figure, path)


def _drifts(group: Group) -> list[float]:
    events: list[Mapping[str, Any]] = [event for run in group.runs for event in run.events]
    return [100 * event["drift"] for event in events if event.get("accepted")]
