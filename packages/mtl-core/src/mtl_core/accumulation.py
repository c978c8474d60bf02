"""Sums over the micro-batches of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtl_core.collecting.dense import DenseStore
from mtl_core.collecting.flat import Row, added_rows
from mtl_core.collecting.heads import HeadGradients
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.errors import NoLossesError
from mtl_core.evaluation import evaluate_without_graph
from mtl_core.micro_batches import MicroBatches
from mtl_core.preservation import preserved
from mtl_core.problem import Problem
from mtl_core.task_losses import TaskLosses

__all__ = ["Accumulator", "losses_of_parts", "mean_losses", "mean_of"]


def losses_of_parts(
    problem: Problem, batch: Any, evaluate: Callable[[Any], TaskLosses] | None = None
) -> Iterator[TaskLosses]:
    """The losses of a batch, or of its micro-batches one after the other, evaluated when they are asked for.

    A micro-batch in which no task has a loss is left out: it is in the mean of no task.

    Args:
        problem: the problem.
        batch: what its losses take, or ``MicroBatches`` of it.
        evaluate: evaluates a part; ``problem.losses`` if ``None``.

    Raises:
        NoLossesError: no part has a loss.
    """
    evaluate = problem.losses if evaluate is None else evaluate
    if not isinstance(batch, MicroBatches):
        yield evaluate(batch)
        return
    without = 0
    for part in batch:
        try:
            found = evaluate(part)
        except NoLossesError:
            without += 1
            continue
        yield found
    if without == len(batch):
        raise NoLossesError(
            f"one of the {len(batch)} micro-batches must have the loss of at least one of {problem.tasks}, got none. "
            "Nothing was updated; a loop may pass over the batch."
        )


def mean_losses(problem: Problem, parts: MicroBatches) -> tuple[Tensor, Tensor]:
    """The losses ``[m]`` of micro-batches, each averaged over the parts that have the task, and how many those are.

    Buffers and random state are left as they were, so that a second evaluation sees the same dropout.

    Returns:
        mean losses ``[m]``, NaN where no part has the task, and counts ``[m]``.
    """
    with preserved(problem.model):
        found = list(losses_of_parts(problem, parts, partial(evaluate_without_graph, problem)))
    return mean_of(found)


def mean_of(found: Sequence[TaskLosses]) -> tuple[Tensor, Tensor]:
    """The mean ``[m]`` of the parts' losses over those that have the task, and how many those are."""
    counts = torch.zeros_like(found[0].full())
    for losses in found:
        counts[list(losses.index)] += 1.0
    # Absent tasks add 0 and are not counted. A mean that leaves out every NaN (nanmean) would also leave out a present
    # task whose loss is NaN, and so hide it.
    return torch.stack([losses.full() for losses in found]).sum(dim=0) / counts, counts


class Accumulator:
    """The mean of task gradients over the parts of a batch that have each task.

    Args:
        problem: whose gradients they are.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._store: DenseStore | None = None
        self._losses: Tensor | None = None
        self._counts = torch.zeros(problem.n_tasks, dtype=torch.float64, device="cpu")
        self._rows: dict[int, Row] = {}
        self._notes: tuple[str, ...] = ()

    def add(self, found: TaskGradients) -> None:
        """Add the gradients of one part."""
        self._counts[list(found.present)] += 1
        # Zero for the absent tasks alone: on a device no loss has been read yet, and one that is NaN must stay so.
        filled = torch.zeros_like(found.losses)
        filled[list(found.present)] = found.losses[list(found.present)]
        self._losses = filled if self._losses is None else self._losses + filled
        for task, row in zip(found.present, found.heads.rows, strict=True):
            self._rows[task] = added_rows(self._rows[task], row) if task in self._rows else row
        store = found.kept
        assert isinstance(store, DenseStore)
        if self._store is None:
            self._store, self._notes = store, found.notes
        else:
            self._store.add(store)

    def mean(self) -> TaskGradients:
        """The mean of what was added."""
        assert self._store is not None
        assert self._losses is not None
        share = 1.0 / self._counts.clamp(min=1.0)
        present = sorted(self._rows)
        heads = HeadGradients(
            self._problem.heads, [self._rows[task] for task in present], present, self._problem.n_tasks
        )
        heads.scale_tasks(share)
        self._store.scale_tasks(share)
        return TaskGradients(
            self._store,
            losses=self._losses / self._counts.to(self._losses),
            tasks=self._problem.tasks,
            present=present,
            heads=heads,
            notes=self._notes,
        )
