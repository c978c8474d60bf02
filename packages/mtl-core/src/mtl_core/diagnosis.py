"""Names the tasks, and the ranks, whose losses or gradients are not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.accumulation import losses_of_parts
from mtl_core.agreement import gather_texts
from mtl_core.collecting.finite import broken_gradients, broken_losses
from mtl_core.collecting.graph import Joint, roots_of
from mtl_core.errors import NonFiniteGradientError
from mtl_core.problem import Problem
from mtl_core.task_losses import TaskLosses

__all__ = ["refuse_broken"]


def refuse_broken(
    problem: Problem, batch: Any, ranks: dist.ProcessGroup | None, found: Exception | None = None
) -> NoReturn:
    """Look again at a step whose losses or gradients are not finite, task by task, and say which they are.

    A backward pass of the weighted sum does not tell whose share was broken, and a mean over ranks does not tell whose
    rank it was. So the batch is evaluated again as the step began, with its buffers and random numbers, which costs
    nothing until it is needed.

    Args:
        problem: the problem.
        batch: the step's batch.
        ranks: the ranks that make the step together; all of them must call.
        found: the error that is known already, to be told with the ranks.

    Raises:
        NonFiniteLossError: naming the tasks, and the ranks.
        NonFiniteGradientError: likewise.
    """
    guard = problem.under_way
    # Not of a sharded model: its gradients come from the sharding's own hooks, which autograd.grad does not call.
    with nullcontext() if guard is None else guard.trace.lent():
        losses, gradients = _broken(problem, batch) if not problem.is_sharded else ([], [])
    if ranks is not None:
        mine = json.dumps([losses, gradients]) if losses or gradients else ""
        # Every rank calls, also one that found nothing: the exchange is collective, and all raise the same text.
        told = gather_texts(mine, ranks)
        where = f" on rank {', '.join(str(rank) for rank, _ in told)}" if told else ""
        losses = sorted({name for _, text in told for name in json.loads(text)[0]})
        gradients = sorted({name for _, text in told for name in json.loads(text)[1]})
    else:
        where = ""
    if losses:
        raise broken_losses(losses, where=where) from found
    if found is not None and not gradients:
        raise found
    if not gradients and not problem.is_sharded:
        raise NonFiniteGradientError(
            "the weighted sum of the gradients must be finite, got NaN or infinity though each task's own gradient is "
            f"finite{where}. Nothing was updated. Look at the sizes of weights and losses, and at their dtype."
        )
    raise broken_gradients(gradients, where=where) from found


def _broken(problem: Problem, batch: Any) -> tuple[list[str], list[str]]:
    """The tasks whose loss, and those whose gradient alone, is not finite."""
    losses: set[str] = set()
    gradients: set[str] = set()
    inputs = [*problem.shared, *problem.heads]

    def evaluate(part: Any) -> TaskLosses:
        with torch.enable_grad():
            return problem.losses(part)

    for found in losses_of_parts(problem, batch, evaluate):
        values = found.values.detach().tolist()
        losses |= {task for task, value in zip(found.tasks, values, strict=True) if not math.isfinite(value)}
        for task, root in zip(found.tasks, roots_of(found.outputs), strict=True):
            # The gradient of a loss that is not finite says nothing more.
            if root is None or task in losses:
                continue
            seed: Tensor | None = None
            start: Any = root
            if isinstance(root, Joint):
                start, seed = root.losses, torch.zeros_like(root.losses)
                seed[root.i] = 1.0
            # One pass a task: in the gradient of a weighted sum, NaN of one task hides the others'.
            row = torch.autograd.grad(start, inputs, seed, retain_graph=True, allow_unused=True)
            if not _is_finite(row):
                gradients.add(task)
    return [t for t in problem.tasks if t in losses], [t for t in problem.tasks if t in gradients]


def _is_finite(row: Sequence[Tensor | None]) -> bool:
    return all(bool(torch.isfinite(g._values() if g.is_sparse else g).all()) for g in row if g is not None)
