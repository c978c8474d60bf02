"""Conflict over a whole training run, at the price of a few operations on an ``[m, m]`` matrix per step."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.conflict import imbalance_ratio, mean_cosines, weak_conflict
from mtl_core.errors import InvalidInputError
from mtl_core.report import StepReport

__all__ = ["ConflictMonitor", "EpochConflict"]


@dataclass(frozen=True)
class EpochConflict:
    """Conflict in one epoch: shares of its measured steps, and means over them.

    Attributes:
        epoch: which epoch.
        steps: how many steps were measured.
        weak: share of steps in which some pair of tasks conflicts.
        dominated: share of steps in which the task of smallest gradient conflicts with the mean.
        majority: share of steps in which at least half of the tasks conflict with the mean.
        count: mean number of tasks that conflict with the mean.
        min_cosine: mean over steps of the smallest cosine with the mean gradient.
        imbalance: geometric mean of the largest over the smallest non-zero gradient norm.
    """

    epoch: int
    steps: int
    weak: float
    dominated: float
    majority: float
    count: float
    min_cosine: float
    imbalance: float


class ConflictMonitor:
    """Collects per-step conflict metrics and sums them up by epoch.

    Works with any loop: hand it what a step has anyway, a ``StepReport``, ``TaskGradients`` or a Gramian ``[m, m]``. A
    step of a loss weighting has no gradients to show and is not counted.

    Example:
        >>> import torch
        >>> monitor = ConflictMonitor()
        >>> monitor.update(torch.tensor([[4.0, -1.0], [-1.0, 0.5]]))
        True
        >>> monitor.epochs()[0].dominated
        1.0
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._rows: list[dict[str, float]] = []
        self._step = 0

    def start_epoch(self, epoch: int) -> None:
        """Count the steps from here on to this epoch."""
        self._epoch = epoch

    def update(self, measured: StepReport | TaskGradients | Tensor) -> bool:
        """Measure one step.

        Args:
            measured: a step's report, its gradients, or their Gramian ``[m, m]``.

        Returns:
            whether there were gradients to measure.
        """
        gramian: Tensor | None
        if isinstance(measured, TaskGradients):
            gramian = measured.host_gramian
        elif isinstance(measured, StepReport):
            gramian = measured.gramian
        else:
            gramian = measured
        # Steps without gradients count as well, so that `step` is the loop's own number.
        self._step += 1
        if gramian is None:
            return False
        # One copy from the device, instead of one for each of the numbers below.
        host = gramian.detach().cpu()
        cosines = mean_cosines(gramian=host)
        squared = host.diagonal()
        moving = squared > 0
        smallest = int(torch.where(moving, squared, torch.full_like(squared, math.inf)).argmin())
        against = cosines < 0
        rows = torch.nonzero(moving).flatten()
        # Without tasks whose gradient is zero: their ratio is infinite, and so would be the epoch's mean.
        imbalance = float(imbalance_ratio(gramian=host[rows][:, rows])) if len(rows) else 1.0
        self._rows.append(
            {
                "epoch": self._epoch,
                "step": self._step - 1,
                "weak": float(weak_conflict(gramian=host)),
                "dominated": float(against[smallest]),
                "majority": float(int(against.sum()) >= math.ceil(len(host) / 2)),
                "count": float(against.sum()),
                "min_cosine": float(cosines[moving].min()) if len(rows) else 0.0,
                "imbalance": imbalance,
                "mean_norm": math.sqrt(max(0.0, float(host.mean()))),
            }
        )
        return True

    def steps(self) -> list[dict[str, float]]:
        """One row per measured step: epoch, step and its metrics."""
        return [dict(row) for row in self._rows]

    def epochs(self) -> list[EpochConflict]:
        """One row per epoch that has measured steps, in order."""
        found = []
        for epoch in sorted({int(row["epoch"]) for row in self._rows}):
            rows = [row for row in self._rows if int(row["epoch"]) == epoch]
            mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
            # A geometric mean: ratios of 10 and 1/10 are as far from 1, and one extreme step does not decide.
            logs = sum(math.log(row["imbalance"]) for row in rows) / len(rows)
            shares = {key: mean[key] for key in ("weak", "dominated", "majority", "count", "min_cosine")}
            found.append(EpochConflict(epoch=epoch, steps=len(rows), imbalance=math.exp(logs), **shares))
        return found

    def to_csv(self, path: str | PathLike[str], *, per: str = "epoch") -> None:
        """Write a tidy table, one row per epoch or per step.

        Args:
            path: the file to write.
            per: ``"epoch"`` or ``"step"``.

        Raises:
            InvalidInputError: nothing has been measured, or ``per`` is something else.
        """
        if per not in ("epoch", "step"):
            raise InvalidInputError(f"`per` must be 'epoch' or 'step', got {per!r}.")
        rows: list[Mapping[str, Any]] = list(self.steps()) if per == "step" else [asdict(e) for e in self.epochs()]
        if not rows:
            raise InvalidInputError("there must be a measured step to write, got none. Call update() in the loop.")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain data."""
        return {"epoch": self._epoch, "step": self._step, "rows": self.steps()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._epoch, self._step = int(state["epoch"]), int(state["step"])
        self._rows = [dict(row) for row in state["rows"]]
