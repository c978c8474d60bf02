"""Figures about conflict and teleports, from what steps, monitors and teleports report.

Each function takes reports, objects or the plain data read back from a run's ``events.jsonl``, writes one figure and
returns its path. The numbers in the docstrings are those of the COST paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mtl_benchmarks.figures.drawing import grid, headed, key_below, new_figure, save
from mtl_benchmarks.figures.experiments import (
    conflict_scatter,
    label_styles,
    share_lines,
    whole_ticks,
)
from mtl_benchmarks.figures.palette import ACCENT, INK, MUTED, SUBTLE, task_colour
from mtl_benchmarks.figures.sweeps import pairs_of_bars, sweep_lines
from mtl_core import ConflictMonitor, InvalidInputError, StepReport, mean_cosines
from mtl_core.checks import one_of
from mtl_teleport import TeleportReport

__all__ = [
    "before_after",
    "conflict_per_epoch",
    "inside_teleport",
    "loss_against_conflict",
    "loss_conflict_points",
    "time_cost",
    "trigger_sweep",
]

Report = TeleportReport | Mapping[str, Any]
"""A teleport's report, or the same as plain data."""


def _plain(reports: Iterable[Report]) -> list[Mapping[str, Any]]:
    return [report.as_dict() if isinstance(report, TeleportReport) else report for report in reports]


def before_after(reports: Iterable[Report], path: Path) -> Path:
    r"""The smallest cosine with the mean gradient, and the norm of that, before and after each teleport (figure 8).

    Only teleports that were kept are drawn, in their order.

    Args:
        reports: of one run or several.
        path: the file to write.

    Raises:
        InvalidInputError: no teleport was kept.
    """
    kept = [report for report in _plain(reports) if report["accepted"]]
    if not kept:
        raise InvalidInputError("`reports` must hold a teleport that was kept, got none.")
    figure = new_figure(9, 3.8)
    order = range(1, len(kept) + 1)
    panels = (
        ("min_cosine", r"smallest cosine with the mean gradient, $\min_i \cos\varphi_{i0}$"),
        ("mean_norm", r"norm of the mean gradient, $\|g_0\|$"),
    )
    every = []
    for number, (name, heading) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 2, number)
        before = [report[f"{name}_before"] for report in kept]
        after = [report[f"{name}_after"] for report in kept]
        axes.vlines(order, before, after, color=SUBTLE, linewidth=1.5, zorder=1)
        axes.scatter(order, before, s=20, color=MUTED, label="before", zorder=2)
        axes.scatter(order, after, s=20, color=ACCENT, marker="^", label="after", zorder=3)
        if name == "min_cosine":
            axes.axhline(0.0, color=INK, linewidth=0.6)
        elif min(*before, *after) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="teleport, in order", title=heading)
        axes.xaxis.set_major_locator(whole_ticks())
        grid(axes)
        every.append(axes)
    headed(figure, f"{len(kept)} kept teleports, before and after")
    key_below(figure, every)
    return save(figure, path)


def inside_teleport(report: Report, path: Path) -> Path:
    """Every task's loss over its first value, and the sharpness over its own, along one search (figure 5b).

    With several probe batches the values are those of each turn's batch, so that only each batch's own points compare.

    Args:
        report: of a teleport that searched.
        path: the file to write.

    Raises:
        InvalidInputError: the report has no search, as that of a random move.
    """
    (plain,) = _plain([report])
    losses, growth = plain["search_losses"], plain["search_growth"]
    if not losses:
        raise InvalidInputError("`report` must be that of a search, got one without any point, such as a random move.")
    figure = new_figure(5.8, 4.0)
    axes = figure.add_subplot(1, 1, 1)
    for task, name in enumerate(plain["tasks"]):
        values = [point[task] for point in losses]
        # A task that was absent at the first point, or whose loss was 0, has nothing to be a share of.
        if values[0]:
            shares = [v / values[0] if v is not None else math.nan for v in values]
            axes.plot(range(len(values)), shares, color=task_colour(task), marker=".", label=f"loss of {name}")
    axes.set(xlabel="point of the search", ylabel="loss / first loss")
    axes.xaxis.set_major_locator(whole_ticks())
    grid(axes)
    beside = axes.twinx()
    shown = [math.nan if value is None else value for value in growth]
    beside.plot(range(len(shown)), shown, color=INK, linestyle="--", marker="x", linewidth=1, label="sharpness (right)")
    beside.set_ylabel("sharpness / first sharpness", fontsize=9)
    beside.tick_params(labelsize=8)
    headed(figure, "Inside one teleport")
    key_below(figure, [axes, beside])
    return save(figure, path)


_SHARES = ("weak", "dominated", "majority")


def conflict_per_epoch(monitors: Mapping[str, ConflictMonitor], path: Path, *, kind: str = "dominated") -> Path:
    """The share of an epoch's steps with conflict, one line per method (figure 5a).

    Args:
        monitors: method → the monitor that was updated at its steps.
        path: the file to write.
        kind: ``"weak"``, ``"dominated"`` or ``"majority"``.

    Raises:
        InvalidInputError: no monitor has measured anything.
        InvalidParameterError: ``kind`` is none of the three.
    """
    one_of("kind", kind, _SHARES)
    found = {name: monitor.epochs() for name, monitor in monitors.items()}
    if not any(found.values()):
        raise InvalidInputError("`monitors` must have measured steps, got none. Call update(report) in the loop.")
    lines = {name: [(each.epoch, getattr(each, kind)) for each in epochs] for name, epochs in found.items()}
    label, title = f"share of steps with {kind} conflict", f"How often {kind} conflict occurs"
    return save(share_lines(lines, label_styles(found), ylabel=label, title=title), path)


def loss_conflict_points(reports: Iterable[StepReport]) -> list[tuple[float, float]]:
    r"""Mean loss, and the cosine with the mean gradient of the task of smallest gradient, per step with a Gramian.

    Args:
        reports: of steps.

    Returns:
        one pair per step whose report has a Gramian; tasks without a gradient have no say.
    """
    points = []
    for report in reports:
        if report.gramian is None:
            continue
        gramian = report.gramian.detach().cpu()
        squared = gramian.diagonal()
        if not bool((squared > 0).any()):
            continue
        # A row of zeros is a task that was absent, and no weak one.
        smallest = int(torch.where(squared > 0, squared, torch.full_like(squared, math.inf)).argmin())
        loss = float(report.losses.detach().double().cpu().nanmean())
        points.append((loss, float(mean_cosines(gramian=gramian)[smallest])))
    return points


def loss_against_conflict(reports: Mapping[str, Iterable[StepReport]], path: Path) -> Path:
    """The weakest task's cosine with the mean gradient against the mean loss, a dot per step (figure 3).

    Points of one loss with and without conflict are what teleportation lives on.

    Args:
        reports: method → its steps' reports.
        path: the file to write.

    Raises:
        InvalidInputError: no step has a Gramian, as of a loss weighting.
    """
    found = {name: loss_conflict_points(steps) for name, steps in reports.items()}
    if not any(found.values()):
        raise InvalidInputError("`reports` must hold steps with a Gramian, got none. Use a method on task gradients.")
    figure = conflict_scatter(found)
    headed(figure, "Loss and conflict, a dot per step")
    return save(figure, path)


def trigger_sweep(points: Mapping[float, tuple[Sequence[float], Sequence[float]]], path: Path) -> Path:
    """What a looser trigger gains and costs (appendix figure 3): the measure, and the seconds, against the fraction.

    Args:
        points: fraction of tasks in conflict → measure per seed (Δm), and seconds per seed.
        path: the file to write.

    Raises:
        InvalidInputError: there is no point.
    """
    if not points:
        raise InvalidInputError("`points` must hold at least one fraction, got none.")
    figure = sweep_lines(
        points,
        xlabel="fraction of tasks that must conflict with the mean",
        left="Δm [%], lower is better",
        right="training time [s]",
    )
    has_intervals = any(len(values) > 1 for values, _ in points.values())
    headed(figure, f"What a looser trigger gains and costs, {'with 95 % intervals' if has_intervals else 'one seed'}")
    return save(figure, path)


def time_cost(seconds: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> Path:
    """Seconds per epoch without and with teleports, a pair of bars per method (appendix figure 4).

    Bars are medians, lines go from the smallest to the largest, and the median ratio of the same turn stands above.

    Args:
        seconds: method → seconds of some epochs without, and with.
        path: the file to write.

    Raises:
        InvalidInputError: there is no method, or one has no epoch.
    """
    if not seconds or not all(without and with_ for without, with_ in seconds.values()):
        raise InvalidInputError("`seconds` must hold epochs without and with teleports for each method, got none.")
    figure = pairs_of_bars(seconds, ylabel="time of an epoch [s]")
    headed(figure, "What teleports cost: median epochs, from least to most")
    return save(figure, path)
