"""What the figures draw, out of the tables that every run writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from mtl_aggregators import IMGrad
from mtl_benchmarks.figures.analysis import loss_conflict_points
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import InvalidInputError, StepReport, imbalance_ratio

__all__ = [
    "MEASURES",
    "balances",
    "conflict_points",
    "epoch_shares",
    "imbalances",
    "kept_teleports",
    "progress_points",
    "recorded_steps",
]


MEASURES: tuple[Literal["pm", "lm", "dc"], ...] = ("pm", "lm", "dc")
"""The measures of balance that IMGrad has."""


def recorded_steps(run: RunResult) -> list[tuple[int, StepReport]]:
    """The recorded steps of a run at which there were gradients of several tasks, as reports.

    Raises:
        InvalidInputError: there are none, as of a method on loss values.
    """
    files = RunDirectory.existing(run.directory)
    losses: dict[int, list[float]] = {}
    for row in files.read_steps():
        losses.setdefault(int(row["step"]), []).append(float(row["loss"]) if row["loss"] else math.nan)
    found = [
        (
            step,
            StepReport(
                losses=torch.tensor(losses[step], dtype=torch.float64),
                weights=None,
                gramian=torch.tensor(gramian, dtype=torch.float64),
                tasks=run.config.tasks,
                progress=torch.tensor(progress, dtype=torch.float64),
            ),
        )
        for step, progress, gramian in files.read_gradients()
        if step in losses
    ]
    if not found:
        raise _unrecorded(run, "no Gramian of its steps")
    return found


def _unrecorded(run: RunResult, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"`--methods` must look at task gradients for this figure, got {run.config.label}, whose run "
        f"{str(run.directory)!r} has recorded {what}. Give a method on gradients, such as fairgrad, or another `--out` "
        "if an earlier version has trained that run."
    )


def conflict_points(run: RunResult) -> list[tuple[int, float, float]]:
    """Step, mean loss, and the cosine with the mean gradient of the task of smallest gradient."""
    found = []
    for step, report in recorded_steps(run):
        found += [(step, loss, cosine) for loss, cosine in loss_conflict_points([report])]
    return found


def balances(run: RunResult) -> dict[int, dict[str, float]]:
    """Step → the three measures of IMGrad of how balanced the tasks are: ``pm``, ``lm`` and ``dc``."""
    methods = {measure: IMGrad(measure=measure, backend="host") for measure in MEASURES}
    found = {}
    for step, report in recorded_steps(run):
        assert report.gramian is not None
        own: dict[str, float] = {}
        for measure, method in methods.items():
            method.weights(report.gramian)
            own[measure] = float(method.last_balance or 0.0)
        found[step] = own
    return found


def imbalances(run: RunResult) -> dict[int, float]:
    """Step → the largest gradient norm over the smallest one; steps with a zero gradient are left out."""
    found = {}
    for step, report in recorded_steps(run):
        ratio = float(imbalance_ratio(gramian=report.gramian))
        if math.isfinite(ratio):
            found[step] = ratio
    return found


def progress_points(run: RunResult) -> list[tuple[int, tuple[float, ...]]]:
    """Step, and each task's cosine with the update.

    Raises:
        InvalidInputError: the method's update is not known at its steps.
    """
    found = [
        (step, tuple(report.progress.tolist()))
        for step, report in recorded_steps(run)
        if report.progress is not None and not bool(report.progress.isnan().any())
    ]
    if not found:
        raise InvalidInputError(
            f"`--methods` must give weights or an update at each step, got {run.config.label}, whose run "
            f"{str(run.directory)!r} has recorded no cosine with it."
        )
    return found


def epoch_shares(run: RunResult, kind: str) -> list[tuple[int, float]]:
    """Epoch, and the share of its steps with conflict of a kind: ``weak``, ``dominated``, ``any_mean`` or ``majority``.

    With several evaluations in an epoch the last one stands for it.

    Raises:
        InvalidInputError: the run has not looked at gradients.
    """
    found = {
        int(row["epoch"]): float(row["value"])
        for row in RunDirectory.existing(run.directory).read_metrics()
        if (row["split"], row["metric"]) == ("train", f"{kind}_conflict")
    }
    if not found:
        raise _unrecorded(run, f"no {kind}_conflict")
    return sorted(found.items())


def kept_teleports(runs: Sequence[RunResult]) -> list[tuple[RunResult, Mapping[str, Any]]]:
    """The teleports of runs that were kept, with what was measured before and after each."""
    return [
        (run, event)
        for run in runs
        for event in run.events
        if event.get("kind") == "teleport" and event.get("accepted") and event.get("cosines_after") is not None
    ]
