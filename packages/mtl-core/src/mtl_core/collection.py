"""The task gradients of a problem, under a step's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.accumulation import Accumulator, losses_of_parts
from mtl_core.agreement import together
from mtl_core.collecting.arguments import check_one_device
from mtl_core.collecting.backward import full_losses
from mtl_core.collecting.differentiation import differentiate
from mtl_core.collecting.reentrant import refuse_reentrant
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import shard_group
from mtl_core.errors import DetachedLossError, InvalidInputError
from mtl_core.gradients import check_group
from mtl_core.graph_checks import check_graph_once
from mtl_core.micro_batches import MicroBatches
from mtl_core.problem import Problem
from mtl_core.report import StepOptions
from mtl_core.task_losses import TaskLosses

__all__ = ["accumulate", "collect_batch", "collect_problem", "ranks_of"]


def ranks_of(problem: Problem, options: StepOptions) -> dist.ProcessGroup | None:
    """The ranks that make a step together: those of the group, or those that a sharded model lies on."""
    return shard_group(problem.shared) if problem.is_sharded else options.group


def collect_batch(
    problem: Problem, batch: Any, *, options: StepOptions | None = None, retain_graph: bool = False
) -> TaskGradients:
    """The task gradients of a batch, or of micro-batches, from the forward pass on; all ranks raise, or none.

    Args:
        problem: the problem.
        batch: what its losses take, or ``MicroBatches`` of it.
        options: the step's options; its scaler, if any, is applied and undone.
        retain_graph: keep the losses' graph for another backward pass.

    Returns:
        the gradients, with those of the heads kept inside for ``finish``.
    """
    options = StepOptions() if options is None else options
    if isinstance(batch, MicroBatches):
        return accumulate(problem, batch, options=options)
    check_group(options.keep, options.group)
    with together(ranks_of(problem, options)):
        gradients = _collect_here(problem, problem.losses(batch), options, retain_graph)
    # After the block, by when all ranks have their gradients: the average waits for every rank.
    return _averaged(problem, gradients, options)


def collect_problem(
    problem: Problem,
    losses: TaskLosses,
    *,
    options: StepOptions | None = None,
    retain_graph: bool = False,
    by: Sequence[Tensor] | None = None,
) -> TaskGradients:
    """As ``collect_batch``, from losses that are evaluated already.

    Args:
        problem: the problem.
        losses: what ``problem.losses(batch)`` returned.
        options: the step's options; its scaler, if any, is applied and undone.
        retain_graph: keep the losses' graph for another backward pass.
        by: some of the shared parameters, to differentiate by these alone and leave the heads out.
    """
    options = StepOptions() if options is None else options
    check_group(options.keep, options.group)
    with together(ranks_of(problem, options)):
        gradients = _collect_here(problem, losses, options, retain_graph, by)
    return _averaged(problem, gradients, options)


def accumulate(problem: Problem, parts: MicroBatches, *, options: StepOptions | None = None) -> TaskGradients:
    r"""The mean of the task gradients over micro-batches, :math:`J = \frac1K \sum_k J_k`, one graph at a time.

    A task that some parts lack is averaged over those that have it, and a part that has no task is left out.

    Args:
        problem: the problem.
        parts: the micro-batches.
        options: the step's options.

    Returns:
        gradients as from one batch.

    Raises:
        NoLossesError: no part has a task.
        InvalidInputError: the options keep less than the Jacobian, which cannot be accumulated, or the parameters are
            sharded.
    """
    options = StepOptions() if options is None else options
    if options.keep != "jacobian":
        raise InvalidInputError(
            f"`keep` must be 'jacobian' to accumulate over micro-batches, got {options.keep!r}: the Gramian of a "
            "sum is "
            "not the sum of the Gramians."
        )
    if problem.is_sharded:
        raise InvalidInputError(
            "micro-batches need whole parameters, got sharded ones: their gradients are averaged by hooks of whole "
            "backward passes. Give one batch, or replicate the model."
        )
    # Heads are looked at once, in the mean: what is NaN in one part is NaN there, too.
    each = replace(options, check_gradients=False)
    with together(options.group):
        total = Accumulator(problem)
        for losses in losses_of_parts(problem, parts):
            total.add(_collect_here(problem, losses, each, retain_graph=False))
        gradients = total.mean()
        # Of the mean, and before it is averaged over ranks: the flags travel with that reduction.
        if options.check_gradients:
            gradients.check_heads()
    return _averaged(problem, gradients, options)


def _collect_here(
    problem: Problem,
    losses: TaskLosses,
    options: StepOptions,
    retain_graph: bool,
    by: Sequence[Tensor] | None = None,
) -> TaskGradients:
    """The gradients of this rank alone, the loss scale divided out."""
    scaler = options.scaler
    outputs = losses.outputs
    # Once; for reentrant checkpoints later where a gradient is missing.
    check_graph_once(problem, losses)
    if scaler is not None:
        # A half-precision loss is widened first: the scale itself would make it overflow.
        outputs = (
            scaler.scale(_widened(outputs))
            if isinstance(outputs, Tensor)
            else tuple(scaler.scale(_widened(out)) for out in outputs)
        )
    shared = problem.shared if by is None else tuple(by)
    check_one_device(shared, "Keep what is shared on one device, or use a loss-based method such as LS.")
    try:
        gradients = differentiate(
            outputs,
            problem.tasks,
            losses.index,
            shared,
            features=losses.features if by is None else None,
            heads=problem.heads if by is None else (),
            chunk_size=options.chunk_size,
            keep=options.keep,
            retain_graph=retain_graph,
            # Of the unscaled losses: a scale that has grown makes infinity of a finite one.
            losses=full_losses(losses.outputs, problem.n_tasks, losses.index),
            check_heads=options.check_gradients,
        )
    except (RuntimeError, DetachedLossError) as error:
        refuse_reentrant(outputs, error)
        raise
    if not all(gradients.kept.touched):
        refuse_reentrant(outputs)
    if scaler is not None:
        # By scaling a one: get_scale() would read the scale from the device and wait for it.
        gradients.rescale(1.0 / scaler.scale(torch.ones((), device=gradients.parameters[0].device)))
    return gradients


def _averaged(problem: Problem, gradients: TaskGradients, options: StepOptions) -> TaskGradients:
    if options.group is not None and not problem.is_sharded:
        gradients.average(options.group, scattered=options.keep == "scattered")
    return gradients


def _widened(loss: Tensor) -> Tensor:
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss
