"""What a run keeps of its steps: means per epoch, events, a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtl_benchmarks.series import TaskSeries
from mtl_core import StepReport

__all__ = ["Recorder", "conflict_statistics"]

PER_TASK = frozenset({"loss", "weight", "norm", "cosine"})
"""What is recorded of each task at every epoch, under its name and that of the task."""


def conflict_statistics(gramians: Tensor) -> dict[str, float]:
    r"""Conflict over the steps of an epoch, from their Gramians.

    Args:
        gramians: [n, m, m] float64.

    Returns:
        Shares of the steps with ``weak_conflict`` and ``dominated_conflict``, and the means of ``min_cosine``
        (:math:`\min_i \cos\varphi_{i0}`), of the ``gradient_norm`` :math:`\|g_0\|` and of the ``imbalance`` ratio of
        the largest to the smallest norm. A task with a zero gradient has cosine 0 and is left out of the last.
    """
    squared = gramians.diagonal(dim1=1, dim2=2).clamp(min=0)
    norms = squared.sqrt()
    inner = gramians.mean(2)
    mean_norm = inner.mean(1).clamp(min=0).sqrt()
    scale = norms * mean_norm[:, None]
    cosines = torch.where(scale > 0, inner / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    present = norms > 0
    smallest = torch.where(present, norms, torch.inf).argmin(1)
    dominated = inner.gather(1, smallest[:, None]).squeeze(1) < 0
    ratio = norms.amax(1) / torch.where(present, norms, torch.inf).amin(1)
    return {
        "weak_conflict": float((gramians < 0).flatten(1).any(1).double().mean()),
        "dominated_conflict": float(dominated.double().mean()),
        "min_cosine": float(cosines.amin(1).mean()),
        "gradient_norm": float(mean_norm.mean()),
        "imbalance": float(ratio.mean()),
    }


@dataclass
class Recorder:
    """Everything a run has recorded so far. Its state is part of the checkpoint, and the tables are written from it.

    Attributes:
        tasks: names of the tasks.
        history: one evaluation per finished epoch: split → metric → value.
        training: one row per finished epoch: name → mean over its steps.
        events: what happened, in order, with epoch and step.
        trace: the path, one point per step.
        series: weights, norms and cosines per task.
    """

    tasks: tuple[str, ...]
    history: list[dict[str, dict[str, float]]] = field(default_factory=list)
    training: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    trace: list[list[float]] = field(default_factory=list)
    series: TaskSeries = field(init=False)
    _losses: list[Tensor] = field(default_factory=list)
    _gramians: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.series = TaskSeries(self.tasks)

    def record_step(self, report: StepReport, point: list[float] | None, *, epoch: int, step: int) -> None:
        """Keep one step. Nothing is read from the device here."""
        self._losses.append(report.losses)
        if report.gramian is not None:
            self._gramians.append(report.gramian)
        self.series.record_step(report, step=step)
        if point is not None:
            self.trace.append(point)
        for event in report.events:
            self.events.append({"epoch": epoch, "step": step, **event.as_dict(), "kind": event.kind})

    def end_epoch(self, evaluation: Mapping[str, Mapping[str, float]]) -> None:
        """Reduce the steps of the epoch to their means and keep the evaluation.

        Conflict is described only where every step of the epoch had its Gramian.
        """
        losses = torch.stack(self._losses).double().cpu().nanmean(0).tolist()
        row = {f"loss_{task}": value for task, value in zip(self.tasks, losses, strict=True)}
        if len(self._gramians) == len(self._losses) and len(self.tasks) > 1:
            row |= conflict_statistics(torch.stack(self._gramians).double().cpu())
        row |= self.series.end_epoch(self._gramians, steps=len(self._losses), epoch=len(self.training) + 1)
        self.training.append(row)
        self.history.append({split: dict(values) for split, values in evaluation.items()})
        self._losses, self._gramians = [], []

    @property
    def last_losses(self) -> list[float]:
        """The losses of the latest step of this epoch; waits for the device."""
        return self._losses[-1].tolist() if self._losses else []

    def n_events(self, *, accepted: bool) -> int:
        """Number of moves so far that were kept, or undone."""
        return sum(event.get("accepted") is accepted for event in self.events)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {
            "history": list(self.history),
            "training": list(self.training),
            "events": list(self.events),
            "trace": torch.tensor(self.trace, dtype=torch.float64),
            "losses": torch.stack(self._losses) if self._losses else None,
            "gramians": torch.stack(self._gramians) if self._gramians else None,
            "series": self.series.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.history, self.training = list(state["history"]), list(state["training"])
        self.events = list(state["events"])
        self.trace = state["trace"].tolist()
        self._losses = [] if state["losses"] is None else list(state["losses"])
        self._gramians = [] if state["gramians"] is None else list(state["gramians"])
        self.series.load_state_dict(state["series"])

    def metric_rows(self, metrics: Mapping[str, tuple[str, str, bool]]) -> Sequence[tuple[Any, ...]]:
        """Rows of ``metrics.csv``; ``metrics`` gives task, unit and direction of the named ones."""
        rows: list[tuple[Any, ...]] = []
        for epoch, (training, evaluation) in enumerate(zip(self.training, self.history, strict=True), start=1):
            for name, value in training.items():
                quantity, _, task = name.partition("_")
                if quantity not in PER_TASK or task not in self.tasks:
                    quantity, task = name, ""
                rows.append((epoch, "train", task, quantity, "", "", value))
            for split, values in evaluation.items():
                for name, value in values.items():
                    task, unit, better = metrics.get(name, ("", "", None))
                    rows.append((epoch, split, task, name, unit, "" if better is None else str(better).lower(), value))
        return rows
