"""Weights, norms and cosines per task over time, bounded in size whatever the length of a run.

At every evaluation there are means over all steps since the one before. Of single steps and of the cosines of pairs a
thinned series is kept: every s-th, where s doubles each time the series is full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mtl_benchmarks.engine.stacked import Stacked
from mtl_core import StepReport

__all__ = ["PAIR_HEADER", "STEP_HEADER", "TaskSeries", "Thinned", "gradient_header", "pair_cosines"]

T = TypeVar("T")

STEP_HEADER = ("step", "task", "loss", "weight", "norm")
PAIR_HEADER = ("epoch", "step", "task", "other", "cosine")

MAX_STEPS = 1000
"""Steps of which single values are kept, at most."""
MAX_PAIRS = 32
"""Evaluations up to which the cosines of pairs are kept, at most."""
MAX_GRAMIANS, MAX_PRODUCTS, FEWEST_GRAMIANS = 400, 16_000, 32
"""Steps whose Gramian is kept, at most; and fewer where so many inner products would be more, but never fewer than the
last."""
MOST_WAITING = 64
"""Reports that are held before their Gramians are read from them, so that a long interval does not let them pile up."""


def gradient_header(tasks: Sequence[str]) -> tuple[str, ...]:
    """The heading of ``gradients.csv``: a column for the inner products with each task."""
    return ("step", "task", "progress", *(f"with {task}" for task in tasks))


def gramians_kept(n_tasks: int) -> int:
    """Steps whose Gramian is kept, at most.

    Example:
        >>> [gramians_kept(m) for m in (2, 11, 40)]
        [400, 132, 32]
    """
    return min(MAX_GRAMIANS, max(FEWEST_GRAMIANS, MAX_PRODUCTS // n_tasks**2))


class Thinned(Generic[T]):
    """The items of an endless series at multiples of a stride, which doubles when there are too many.

    Args:
        limit: how many are kept at most, at least 2; there are never fewer than half as many once it was reached.

    Example:
        >>> kept = Thinned(4)
        >>> for k in range(11):
        ...     kept.offer(k, f"item {k}")
        >>> kept.stride, [place for place, _ in kept.items]
        (4, [0, 4, 8])
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.stride = 1
        self.items: list[tuple[int, T]] = []

    def wants(self, place: int) -> bool:
        """Whether the item at this place would be kept."""
        return place % self.stride == 0

    def offer(self, place: int, item: T) -> None:
        """Keep it, or not."""
        if not self.wants(place):
            return
        self.items.append((place, item))
        # Every other item goes. What is left depends on the places alone, so that a resumed run keeps the same ones.
        while len(self.items) > self.limit:
            self.stride *= 2
            self.items = [each for each in self.items if self.wants(each[0])]


def pair_cosines(gramians: Tensor) -> Tensor:
    r"""Mean over steps of :math:`\cos\varphi_{ij}`, over the steps in which both gradients are there.

    Args:
        gramians: [n, m, m] float64.

    Returns:
        [m, m]; NaN where no step had both.
    """
    norms = gramians.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    scale = norms[:, :, None] * norms[:, None, :]
    # NaN, not 0, where a gradient is missing: nanmean leaves that step out.
    cosines = torch.where(scale > 0, gramians / scale, torch.nan).clamp(-1, 1)
    return cosines.nanmean(0)


def _mean_cosines(gramians: Tensor) -> Tensor:
    """Mean over steps of each task's cosine with the mean gradient, [m]; NaN where it never had a gradient."""
    norms = gramians.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    inner = gramians.mean(2)
    scale = norms * inner.mean(1).clamp(min=0).sqrt()[:, None]
    return torch.where(scale > 0, inner / scale, torch.nan).clamp(-1, 1).nanmean(0)


def _products(report: StepReport) -> Tensor:
    """Progress and Gramian of a step that has one, [m, 1 + m] float64."""
    assert report.gramian is not None
    gramian = report.gramian.detach().cpu().double()
    progress, weights = report.progress, report.weights
    if progress is None and weights is not None and weights.ndim == 1:
        # As mtl_core.individual_progress, without its checks: this is done at many steps.
        own = weights.detach().cpu().double()
        inner = gramian.mv(own)
        scale = gramian.diagonal().clamp(min=0).sqrt() * own.dot(inner).clamp(min=0).sqrt()
        progress = torch.where(scale > 0, inner / scale, 0.0).clamp(-1, 1)
    column = gramian.new_full((len(gramian),), torch.nan) if progress is None else progress.detach().cpu().double()
    return torch.cat([column[:, None], gramian], 1)


def _packed(kept: Thinned[Tensor]) -> dict[str, Any]:
    return {
        "stride": kept.stride,
        "places": [place for place, _ in kept.items],
        "values": torch.stack([item for _, item in kept.items]) if kept.items else None,
    }


@dataclass
class TaskSeries:
    """What a run keeps of each task over time. Nothing is read from the device before an evaluation.

    Attributes:
        tasks: names of the tasks.
        steps: at single steps, [3, m] losses, weights and norms, NaN where there are none.
        pairs: at single evaluations, from 0, the cosines of pairs [m, m].
        gradients: at single steps with a Gramian, [m, 1 + m]: each task's cosine with the update, NaN where it is not
            known, and the Gramian.
        last: the report of the latest step in this process.
    """

    tasks: tuple[str, ...]
    steps: Thinned[Tensor] = field(default_factory=lambda: Thinned(MAX_STEPS))
    pairs: Thinned[Tensor] = field(default_factory=lambda: Thinned(MAX_PAIRS))
    gradients: Thinned[Tensor] = field(init=False)
    last: StepReport | None = None
    _weights: Stacked = field(default_factory=Stacked)
    _waiting: list[tuple[int, bool, bool]] = field(default_factory=list)
    """Steps of which single values are to be kept, and whether they had weights and a Gramian."""
    _parts: tuple[Stacked, Stacked, Stacked] = field(default_factory=lambda: (Stacked(), Stacked(), Stacked()))
    """Losses, weights and squared norms of those steps that had them."""
    _seen: list[tuple[int, StepReport]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gradients = Thinned(gramians_kept(len(self.tasks)))

    def record_step(self, report: StepReport, *, step: int) -> None:
        """Keep one step."""
        self.last = report
        weights = report.weights
        if weights is not None and weights.ndim > 1:  # one weight for each group of parameters
            weights = weights.mean(0)
        if weights is not None:
            self._weights.append(weights)
        if self.steps.wants(step):
            squared = None if report.gramian is None else report.gramian.diagonal()
            # On the device, as they are; read at the next evaluation, when it is waited for anyway.
            self._waiting.append((step, weights is not None, squared is not None))
            for kept, part in zip(self._parts, (report.losses, weights, squared), strict=True):
                if part is not None:
                    kept.append(part.detach())
        if report.gramian is not None and len(self.tasks) > 1 and self.gradients.wants(step):
            self._seen.append((step, report))
            if len(self._seen) >= MOST_WAITING:
                self._read_seen()

    def end_interval(self, gramians: Tensor | None, *, steps: int, number: int) -> dict[str, float]:
        """Means over the steps since the last evaluation, named after what they are and their task.

        Args:
            gramians: of these steps, [n, m, m] float64 on the host; None where not all of them had one.
            steps: how many there were.
            number: how many evaluations there were before.
        """
        row: dict[str, float] = {}
        weights = self._weights.whole()
        # Weights in some of the steps only, as of a method that skips solving, are no mean over the interval.
        if weights is not None and len(weights) == steps:
            row |= self._named("weight", weights.double().cpu().nanmean(0))
        if gramians is not None:
            row |= self._named("norm", gramians.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().mean(0))
            row |= self._named("cosine", _mean_cosines(gramians))
            if self.pairs.wants(number):
                self.pairs.offer(number, pair_cosines(gramians).float())
        self._read_waiting()
        self._weights.clear()
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def _named(self, quantity: str, values: Tensor) -> dict[str, float]:
        return {f"{quantity}_{task}": value for task, value in zip(self.tasks, values.tolist(), strict=True)}

    def _read_waiting(self) -> None:
        values = self._waiting_values()
        values[:, 2] = values[:, 2].clamp(min=0).sqrt()
        for (step, *_), row in zip(self._waiting, values.float(), strict=True):
            self.steps.offer(step, row.clone())  # not a view, which would keep the rows that are thinned out
        self._forget_waiting()
        self._read_seen()

    def _waiting_values(self) -> Tensor:
        """Losses, weights and squared norms of the waiting steps, [n, 3, m] float64; NaN where there are none."""
        values = torch.full((len(self._waiting), 3, len(self.tasks)), torch.nan, dtype=torch.float64)
        for k, (kept, there) in enumerate(zip(self._parts, self._there(), strict=True)):
            whole = kept.whole()
            if whole is not None:
                values[there, k] = whole.double().cpu()
        return values

    def _there(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the waiting steps have losses, weights and squared norms, [n] each."""
        weighted = torch.tensor([weighted for _, weighted, _ in self._waiting], dtype=torch.bool)
        measured = torch.tensor([measured for _, _, measured in self._waiting], dtype=torch.bool)
        return torch.ones(len(self._waiting), dtype=torch.bool), weighted, measured

    def _forget_waiting(self) -> None:
        self._waiting = []
        for kept in self._parts:
            kept.clear()

    def _read_seen(self) -> None:
        for step, report in self._seen:
            self.gradients.offer(step, _products(report))
        self._seen = []

    def state_dict(self) -> dict[str, Any]:
        """Plain data and few tensors, whatever the length of the series: each tensor in a checkpoint costs time."""
        self._read_seen()
        return {
            "steps": _packed(self.steps),
            "pairs": _packed(self.pairs),
            "gradients": _packed(self.gradients),
            "weights": self._weights.whole(),
            "waiting": (
                [step for step, *_ in self._waiting],
                [(weighted, measured) for _, weighted, measured in self._waiting],
                self._waiting_values() if self._waiting else None,
            ),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        for kept, name in ((self.steps, "steps"), (self.pairs, "pairs"), (self.gradients, "gradients")):
            if name not in state:  # a checkpoint from before this series was kept
                continue
            kept.stride = state[name]["stride"]
            values = state[name]["values"]
            kept.items = [] if values is None else list(zip(state[name]["places"], values, strict=True))
        self._weights.load(state["weights"])
        steps, there, values = state["waiting"]
        self._forget_waiting()
        self._waiting = [(step, *found) for step, found in zip(steps, there, strict=True)]
        if values is not None:
            for k, (part, rows) in enumerate(zip(self._parts, self._there(), strict=True)):
                part.load(values[rows, k] if bool(rows.any()) else None)

    def step_rows(self) -> Iterable[tuple[Any, ...]]:
        """Rows of ``steps.csv``: step, task, loss, weight, norm; empty where there is none."""
        for step, values in self.steps.items:
            for task, column in zip(self.tasks, values.T.tolist(), strict=True):
                yield (step, task, *("" if math.isnan(value) else value for value in column))

    def gradient_rows(self) -> Iterable[tuple[Any, ...]]:
        """Rows of ``gradients.csv``: step, task, progress, inner products; empty where there is none."""
        for step, values in self.gradients.items:
            for task, row in zip(self.tasks, values.tolist(), strict=True):
                yield (step, task, *("" if math.isnan(value) else value for value in row))

    def pair_rows(self) -> Iterable[tuple[Any, ...]]:
        """Number of the evaluation, task, other task, cosine; each pair once."""
        for place, matrix in self.pairs.items:
            for i, j in combinations(range(len(self.tasks)), 2):
                value = float(matrix[i, j])
                if not math.isnan(value):
                    yield (place, self.tasks[i], self.tasks[j], value)
