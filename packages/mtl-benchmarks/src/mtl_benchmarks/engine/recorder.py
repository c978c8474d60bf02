"""What a run keeps of its steps: means per epoch, events, a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtl_benchmarks.engine.series import TaskSeries
from mtl_benchmarks.engine.stacked import Stacked
from mtl_core import StepReport

__all__ = ["TIMES", "Recorder", "conflict_statistics"]

TIMES = ("data", "forward", "backward", "teleports", "evaluation")
"""What a run's time is spent on: waiting for batches, forward passes, the rest of the steps (differentiating, the
method's own computation, the update), teleports, evaluations. Times of this process: an accelerator works behind them,
and what it has not finished shows where the process next waits for it."""

PER_TASK = frozenset({"loss", "weight", "norm", "cosine"})
"""What is recorded of each task up to every evaluation, under its name and that of the task."""


def conflict_statistics(gramians: Tensor) -> dict[str, float]:
    r"""Conflict over the steps of an epoch, from their Gramians.

    Args:
        gramians: [n, m, m] float64.

    Returns:
        Shares of the steps with ``weak_conflict``, ``dominated_conflict``, ``any_mean_conflict`` (some task conflicts
        with the mean) and ``majority_conflict`` (at least half of the tasks do), and the means of ``min_cosine``
        (:math:`\min_i \cos\varphi_{i0}`), of the ``gradient_norm`` :math:`\|g_0\|` and of the ``imbalance`` ratio of
        the largest to the smallest norm. A task with a zero gradient has cosine 0 and is left out of the last.
    """
    squared = gramians.diagonal(dim1=1, dim2=2).clamp(min=0)
    norms = squared.sqrt()
    inner = gramians.mean(2)
    mean_norm = inner.mean(1).clamp(min=0).sqrt()
    scale = norms * mean_norm[:, None]
    # The clamp keeps 0/0 out of the branch that is not taken.
    cosines = torch.where(scale > 0, inner / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    present = norms > 0
    # A task without a gradient in a step is not the weakest one: it takes no part.
    smallest = torch.where(present, norms, torch.inf).argmin(1)
    dominated = inner.gather(1, smallest[:, None]).squeeze(1) < 0
    majority = 2 * (inner < 0).sum(1) >= norms.shape[1]
    ratio = norms.amax(1) / torch.where(present, norms, torch.inf).amin(1)
    return {
        "weak_conflict": float((gramians < 0).flatten(1).any(1).double().mean()),
        "dominated_conflict": float(dominated.double().mean()),
        "any_mean_conflict": float((inner < 0).any(1).double().mean()),
        "majority_conflict": float(majority.double().mean()),
        "min_cosine": float(cosines.amin(1).mean()),
        "gradient_norm": float(mean_norm.mean()),
        "imbalance": float(ratio.mean()),
    }


@dataclass
class Recorder:
    """Everything a run has recorded so far. Its state is part of the checkpoint, and the tables are written from it.

    Attributes:
        tasks: names of the tasks.
        history: one evaluation each time there was one: split → metric → value.
        training: one row per evaluation: name → mean over the steps since the one before, and the learning rate.
        times: one row per evaluation: what the time since the one before was spent on → seconds.
        epochs: the epoch in which each evaluation stands, from 1.
        steps: the steps taken at each evaluation.
        events: what happened, in order, with epoch and step.
        trace: the path, one point per step.
        series: weights, norms and cosines per task.
    """

    tasks: tuple[str, ...]
    history: list[dict[str, dict[str, float]]] = field(default_factory=list)
    training: list[dict[str, float]] = field(default_factory=list)
    times: list[dict[str, float]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    trace: list[list[float]] = field(default_factory=list)
    series: TaskSeries = field(init=False)
    _losses: Stacked = field(default_factory=Stacked)
    _gramians: Stacked = field(default_factory=Stacked)
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))

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

    def record_times(self, *, data: float, forward: float, whole: float, teleports: float) -> None:
        """Keep what a step's time was spent on.

        Args:
            data: seconds until its batch was there.
            forward: of it in forward passes.
            whole: of the step itself.
            teleports: of it in teleports, the forward passes of which are theirs.
        """
        # A step's forward passes are timed together, and where it has teleported most are of the search.
        if teleports:
            forward = 0.0
        own = self._seconds
        own["data"] += data
        own["forward"] += forward
        own["backward"] += max(0.0, whole - forward - teleports)
        own["teleports"] += teleports

    def record_evaluation(self, seconds: float) -> None:
        """Keep how long an evaluation took."""
        self._seconds["evaluation"] += seconds

    def end_interval(
        self,
        evaluation: Mapping[str, Mapping[str, float]],
        *,
        epoch: int,
        step: int,
        rates: Mapping[str, float],
    ) -> None:
        """Reduce the steps since the last evaluation to their means, and keep the evaluation.

        Conflict is described only where every one of these steps had its Gramian.

        Args:
            evaluation: split → metric → value.
            epoch: in which it stands, from 1.
            step: steps taken.
            rates: learning rates of the optimiser's groups.
        """
        losses = self._losses.whole()
        assert losses is not None
        # One copy from the device for the whole interval. Tasks are averaged over the steps in which they were present.
        means = losses.double().cpu().nanmean(0).tolist()
        row = {f"loss_{task}": value for task, value in zip(self.tasks, means, strict=True)}
        # Steps without a Gramian, such as those that a scaler skips, would leave a mean over other steps than the
        # losses'.
        found = self._gramians.whole() if len(self._gramians) == len(losses) and len(self.tasks) > 1 else None
        gramians = None if found is None else found.double().cpu()
        if gramians is not None:
            row |= conflict_statistics(gramians)
        row |= self.series.end_interval(gramians, steps=len(losses), number=len(self.training))
        self.training.append({**row, **rates})
        self.history.append({split: dict(values) for split, values in evaluation.items()})
        self.times.append(self._seconds)
        self.epochs.append(epoch)
        self.steps.append(step)
        self._losses.clear()
        self._gramians.clear()
        self._seconds = dict.fromkeys(TIMES, 0.0)

    @property
    def last_losses(self) -> list[float]:
        """The losses of the latest step since the last evaluation; waits for the device."""
        last = self._losses.last
        return [] if last is None else list(last.tolist())

    def n_events(self, *, accepted: bool) -> int:
        """Number of moves so far that were kept, or undone."""
        return sum(event.get("accepted") is accepted for event in self.events)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {
            "history": list(self.history),
            "training": list(self.training),
            "times": list(self.times),
            "epochs": list(self.epochs),
            "steps": list(self.steps),
            "events": list(self.events),
            # As one tensor: a list of ten thousand points takes a checkpoint as many entries.
            "trace": torch.tensor(self.trace, dtype=torch.float64),
            "losses": self._losses.whole(),
            "gramians": self._gramians.whole(),
            "series": self.series.state_dict(),
            "seconds": dict(self._seconds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.history, self.training = list(state["history"]), list(state["training"])
        self.times, self.epochs, self.steps = list(state["times"]), list(state["epochs"]), list(state["steps"])
        self.events = list(state["events"])
        self.trace = state["trace"].tolist()
        self._losses.load(state["losses"])
        self._gramians.load(state["gramians"])
        self.series.load_state_dict(state["series"])
        self._seconds = dict(state["seconds"])

    def metric_rows(self, metrics: Mapping[str, tuple[str, str, bool]]) -> Sequence[tuple[Any, ...]]:
        """Rows of ``metrics.csv``; ``metrics`` gives task, unit and direction of the named ones."""
        rows: list[tuple[Any, ...]] = []
        for k, (training, evaluation) in enumerate(zip(self.training, self.history, strict=True)):
            place = (self.epochs[k], self.steps[k])
            for name, value in training.items():
                quantity, _, task = name.partition("_")
                if quantity not in PER_TASK or task not in self.tasks:
                    quantity, task = name, ""
                rows.append((*place, "train", task, quantity, "", "", value))
            for split, values in evaluation.items():
                for name, value in values.items():
                    task, unit, better = metrics.get(name, ("", "", None))
                    shown = "" if better is None else str(better).lower()
                    rows.append((*place, split, task, name, unit, shown, value))
        return rows

    def pair_rows(self) -> Iterable[tuple[Any, ...]]:
        """Rows of ``cosines.csv``: epoch, step, task, other task, cosine; each pair once."""
        for number, task, other, cosine in self.series.pair_rows():
            yield (self.epochs[number], self.steps[number], task, other, cosine)

    def time_rows(self) -> Sequence[tuple[int, int, str, float]]:
        """Rows of ``times.csv``: epoch, step, what time was spent on, seconds."""
        return [
            (self.epochs[k], self.steps[k], part, seconds)
            for k, row in enumerate(self.times)
            for part, seconds in row.items()
        ]
