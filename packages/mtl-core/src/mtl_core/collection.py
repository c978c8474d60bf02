"""The task gradients of a problem's losses, under a step's options."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.gradients import differentiate
from mtl_core.problem import Problem, TaskLosses
from mtl_core.report import StepOptions

__all__ = ["collect_problem"]


def collect_problem(
    problem: Problem, losses: TaskLosses, *, options: StepOptions | None = None, retain_graph: bool = False
) -> TaskGradients:
    """The first half of a gradient-based step: the task gradients of evaluated losses.

    Args:
        problem: the problem.
        losses: what ``problem.losses(batch)`` returned.
        options: the step's options; its scaler, if any, is applied and undone.
        retain_graph: keep the losses' graph for another backward pass.

    Returns:
        the gradients, with those of the heads kept inside for ``finish``.
    """
    options = StepOptions() if options is None else options
    scaler = options.scaler
    outputs = losses.outputs
    if scaler is not None:
        outputs = (
            scaler.scale(_widened(outputs))
            if isinstance(outputs, Tensor)
            else tuple(scaler.scale(_widened(out)) for out in outputs)
        )
    gradients = differentiate(
        outputs,
        problem.tasks,
        losses.index,
        problem.shared,
        features=losses.features,
        heads=problem.heads,
        chunk_size=options.chunk_size,
        group=options.group,
        keep=options.keep,
        retain_graph=retain_graph,
    )
    if scaler is not None:
        gradients.rescale(1.0 / scaler.scale(torch.ones((), device=gradients.parameters[0].device)))
    return gradients


def _widened(loss: Tensor) -> Tensor:
    """A half-precision loss as float32: the scale itself would make it overflow."""
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss
