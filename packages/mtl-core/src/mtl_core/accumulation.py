"""Gradients of a batch that is too large for one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtl_core.collecting.flat import Row
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.collection import collect_problem
from mtl_core.errors import InvalidInputError
from mtl_core.preservation import preserved
from mtl_core.problem import Problem
from mtl_core.report import StepOptions

__all__ = ["MicroBatches", "accumulate", "mean_losses"]


class MicroBatches:
    """Parts of one batch, to be passed one after the other: ``step(problem, MicroBatches(parts), ...)``.

    The step is that of the whole batch, where the parts are of equal size: the Gramian is that of the accumulated
    gradients, not a sum of the parts' Gramians. A loss weighting costs one forward pass without a graph per part, which
    tells the losses of the whole batch, and then one forward and one backward pass per part.

    Args:
        parts: batches as the problem's losses take them.

    Raises:
        InvalidInputError: there is none.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise InvalidInputError("`parts` must hold at least one batch, got none.")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def mean_losses(problem: Problem, parts: MicroBatches) -> tuple[Tensor, Tensor]:
    """The losses ``[m]`` of micro-batches, each averaged over the parts that have the task, and how many those are.

    Buffers and random state are left as they were, so that a second evaluation sees the same dropout.

    Returns:
        mean losses ``[m]``, NaN where no part has the task, and counts ``[m]``.
    """
    with preserved(problem.model), torch.no_grad():
        found = [problem.losses(part) for part in parts]
    counts = torch.zeros_like(found[0].full())
    for losses in found:
        counts[list(losses.index)] += 1.0
    return torch.stack([losses.full() for losses in found]).sum(dim=0) / counts, counts


def accumulate(problem: Problem, parts: MicroBatches, *, options: StepOptions | None = None) -> TaskGradients:
    r"""The mean of the task gradients over micro-batches, :math:`J = \frac1K \sum_k J_k`, one graph at a time.

    A task that some parts lack is averaged over those that have it.

    Args:
        problem: the problem.
        parts: the micro-batches.
        options: the step's options.

    Returns:
        gradients as from one batch.

    Raises:
        InvalidInputError: the options keep less than the Jacobian, which cannot be accumulated.
    """
    options = StepOptions() if options is None else options
    if options.keep != "jacobian":
        raise InvalidInputError(
            f"`keep` must be 'jacobian' to accumulate over micro-batches, got {options.keep!r}: the Gramian of a "
            "sum is "
            "not the sum of the Gramians."
        )
    alone = replace(options, group=None)
    total: TaskGradients | None = None
    counts = torch.zeros(problem.n_tasks)
    rows: dict[int, Row] = {}
    losses: Tensor | None = None
    for part in parts:
        found = collect_problem(problem, problem.losses(part), options=alone)
        counts[list(found.present)] += 1
        filled = torch.nan_to_num(found.losses)
        losses = filled if losses is None else losses + filled
        for task, row in zip(found.present, found.head_gradients, strict=True):
            rows[task] = _add(rows.get(task), row)
        if total is None:
            total = found
        else:
            total.matrix.add_(found.matrix)
    assert total is not None
    assert losses is not None
    share = (1.0 / counts.clamp(min=1.0)).to(total.matrix)
    total.matrix.mul_(share.unsqueeze(1))
    present = sorted(rows)
    gradients = TaskGradients(
        total.matrix,
        total.parameters,
        losses=losses / counts.to(losses),
        tasks=problem.tasks,
        present=present,
        heads=problem.heads,
        notes=total.notes,
        head_gradients=[
            tuple(None if g is None else g * share[task].to(g.dtype) for g in rows[task]) for task in present
        ],
    )
    if options.group is not None:
        gradients.average(options.group)
    return gradients


def _add(before: Row | None, row: Row) -> Row:
    if before is None:
        return row
    return tuple(b if a is None else a if b is None else a + b for a, b in zip(before, row, strict=True))
