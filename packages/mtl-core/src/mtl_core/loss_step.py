"""The step of a method that weighs losses: one backward pass through the shared part, whatever the number of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import MicroBatches, mean_losses
from mtl_core.collecting.backward import check_finite_losses
from mtl_core.collecting.flat import pick
from mtl_core.collecting.graph import check_attached
from mtl_core.collection import collect_problem
from mtl_core.combination import loss_weights
from mtl_core.distributed import is_sharded, mean_over_tasks_present_, shard_group, sum_over_ranks_
from mtl_core.gradient_step import finish
from mtl_core.problem import Problem, TaskLosses
from mtl_core.report import StepOptions, StepReport
from mtl_core.update import events_of, look_back, update

__all__ = ["accumulated_loss_step", "loss_step"]


def loss_step(
    problem: Problem, batch: Any, optimizer: optim.Optimizer, method: Any, losses: TaskLosses, options: StepOptions
) -> StepReport:
    """A step of a loss weighting: one backward pass through the shared part."""
    sharded = is_sharded(problem.shared)
    if not problem.graph_checked and not sharded:
        check_attached(losses.outputs, losses.tasks, problem.shared)
        problem.graph_checked = losses.is_complete
    values = losses.values
    full = losses.full(float("nan")).detach()
    present = list(losses.index)
    share = torch.ones_like(full)
    ranks = shard_group(problem.shared) if sharded else options.group
    if ranks is not None:
        full, counts = mean_over_tasks_present_(full, losses.index, ranks)
        share = share if sharded else 1.0 / counts.clamp(min=1.0)
        present = [i for i, count in enumerate(counts.tolist()) if count]
    weights = loss_weights(method, full, present)
    # One small copy: losses must be finite before anything is written, and unit weights save a pass over the heads.
    host = torch.stack([full, weights.to(full)]).cpu()
    check_finite_losses(host[0], problem.tasks, present)
    ones = pick(share, losses.index).to(values.dtype)
    own = pick(weights, losses.index).to(values.dtype) * ones
    if options.scaler is not None:
        own, ones = options.scaler.scale(own), options.scaler.scale(ones)
    heads = list(problem.heads)
    single = not heads or options.heads == "weighted" or all(weight == 1 for weight in pick(host[1], present).tolist())
    if sharded:
        # The sharding's hooks see whole backward passes only, so heads cannot be passed by themselves.
        if not single:
            gradients = collect_problem(problem, losses, options=options)
            return finish(problem, batch, optimizer, method, gradients, options=options)
        torch.autograd.backward([values], [own])
    else:
        _backward(problem, values, own, ones, single=single)
    skipped = _untouched(problem)
    if ranks is not None and not sharded:
        _sum_gradients((*problem.shared, *heads), ranks)
    undone = update(problem, optimizer, options)
    if not undone:
        look_back(method, problem, batch, full, ranks)
    return StepReport(full, weights, None, problem.tasks, (*undone, *events_of(method)), skipped)


def accumulated_loss_step(
    problem: Problem, parts: MicroBatches, optimizer: optim.Optimizer, method: Any, options: StepOptions
) -> StepReport:
    """A step of a loss weighting over micro-batches: what they weigh is known before any of them is differentiated."""
    full, counts = mean_losses(problem, parts)
    share = 1.0 / counts.clamp(min=1.0)
    present = counts.nonzero().flatten().tolist()
    if options.group is not None:
        full, ranks = mean_over_tasks_present_(full, present, options.group)
        share = share / ranks.to(share).clamp(min=1.0)
        present = ranks.nonzero().flatten().tolist()
    weights = loss_weights(method, full, present)
    host = torch.stack([full, weights.to(full)]).cpu()
    check_finite_losses(host[0], problem.tasks, present)
    heads = list(problem.heads)
    single = not heads or options.heads == "weighted" or all(weight == 1 for weight in pick(host[1], present).tolist())
    scale = torch.ones_like(share) if options.scaler is None else options.scaler.scale(torch.ones_like(share))
    for part in parts:
        losses = problem.losses(part)
        if not problem.graph_checked:
            check_attached(losses.outputs, losses.tasks, problem.shared)
            problem.graph_checked = losses.is_complete
        values = losses.values
        ones = pick(share * scale, losses.index).to(values.dtype)
        own = pick(weights.to(share) * share * scale, losses.index).to(values.dtype)
        _backward(problem, values, own, ones, single=single)
    skipped = _untouched(problem)
    if options.group is not None:
        _sum_gradients((*problem.shared, *heads), options.group)
    undone = update(problem, optimizer, options)
    if not undone:
        look_back(method, problem, parts, full, options.group)
    return StepReport(full, weights, None, problem.tasks, (*undone, *events_of(method)), skipped)


def _backward(problem: Problem, values: Tensor, own: Tensor, ones: Tensor, *, single: bool) -> None:
    """Add the gradients of the weighted losses; the heads' with weights of their own unless one pass does for both."""
    heads, shared = list(problem.heads), list(problem.shared)
    if single:
        torch.autograd.backward([values], [own], inputs=[*shared, *heads])
    else:
        torch.autograd.backward([values], [ones], inputs=heads, retain_graph=True)
        torch.autograd.backward([values], [own], inputs=shared)


def _untouched(problem: Problem) -> tuple[str, ...]:
    """The names of the shared parameters that took no part."""
    return (*problem.frozen_names, *(name for name, p in problem.named_shared.items() if p.grad is None))


def _sum_gradients(parameters: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum what each rank has written; a rank without a parameter's task adds zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks_([p.grad for p in parameters if p.grad is not None], group)
