"""The step of a method that looks at gradients, from collected gradients on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.combination import combine, combine_per_group
from mtl_core.distributed import is_sharded, shard_group
from mtl_core.errors import InvalidJacobianError, InvalidParameterError
from mtl_core.problem import Problem
from mtl_core.protocols import AnyMethod, Event
from mtl_core.report import Note, SkippedUpdate, StepOptions, StepReport
from mtl_core.update import events_of, look_back, update

__all__ = ["finish"]


def finish(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    gradients: TaskGradients,
    *,
    options: StepOptions | None = None,
) -> StepReport:
    """The second half of a gradient-based step: combine, write, clip, update.

    Args:
        problem: the problem.
        batch: the batch, for methods that look at the losses again after the update.
        optimizer: the optimiser, its gradients cleared.
        method: a weighting, loss weighting, aggregator or callable (a ``Method`` owns its step and has no second half).
        gradients: from ``collect_problem``.
        options: the step's options.

    Returns:
        the step's report.
    """
    options = StepOptions() if options is None else options
    try:
        host = gradients.host_gramian
    except InvalidJacobianError:
        if options.scaler is None or not options.scaler.is_enabled():
            raise
        return _skip(problem, gradients, optimizer, options.scaler)
    if options.per != "model":
        vector, weights = combine_per_group(problem, method, gradients, options.per)
    else:
        vector, weights = combine(method, gradients, host)
    if weights is None and options.heads == "weighted":
        raise InvalidParameterError(
            f"`heads='weighted'` needs a method that gives weights, got {type(method).__name__}, which gives "
            "only an update. Use heads='unit'."
        )
    if options.scaler is not None:
        scale = options.scaler.scale(torch.ones((), device=vector.device))
        vector = vector * scale
        gradients.rescale_heads(scale)
    gradients.assign(vector.detach())
    gradients.assign_heads(weights if options.heads == "weighted" else None)
    undone = update(problem, optimizer, options)
    ranks = shard_group(problem.shared) if is_sharded(problem.shared) else options.group
    if not undone:
        look_back(method, problem, batch, gradients.losses, ranks)
    events: tuple[Event, ...] = (*(Note(text) for text in gradients.notes), *undone, *events_of(method))
    names = problem.shared_names
    skipped = (*problem.frozen_names, *(names[k] for k in gradients.untouched))
    return StepReport(gradients.losses, weights, host, problem.tasks, events, skipped)


def _skip(
    problem: Problem, gradients: TaskGradients, optimizer: optim.Optimizer, scaler: torch.amp.GradScaler
) -> StepReport:
    """Let the scaler see the overflow, so that it leaves the parameters alone and lowers its scale."""
    device, dtype = gradients.parameters[0].device, gradients.dtype
    gradients.assign(torch.full((gradients.n_parameters,), float("inf"), device=device, dtype=dtype))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepReport(gradients.losses, None, None, problem.tasks, (SkippedUpdate(scaler.get_scale()),))
