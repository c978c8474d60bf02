"""What a step knows before anything moves: the task gradients, the update that was due, the learning rate."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import InvalidInputError, Method, Problem, StepOptions, TaskGradients
from mtl_core.extension import combine, combine_per_group, is_sharded, offers

__all__ = ["check_parameters", "learning_rate", "present_update"]


def present_update(problem: Problem, wrapped: Any, gradients: TaskGradients, options: StepOptions) -> dict[str, Tensor]:
    """The update that the wrapped method would make before the teleport, without a trace in its state."""
    method: Any = copy.deepcopy(wrapped)
    if offers(method, Method):
        update = gradients.combine(torch.full((gradients.n_tasks,), 1.0 / gradients.n_tasks, dtype=torch.float64))
    elif options.per != "model":
        update, _ = combine_per_group(problem, method, gradients, options.per)
    else:
        update, _ = combine(method, gradients, gradients.host_gramian)
    parts = torch.split(update.detach(), [p.numel() for p in problem.shared])
    return {n: part.view(p.shape) for part, (n, p) in zip(parts, problem.named_shared.items(), strict=True)}


def check_parameters(problem: Problem) -> None:
    """Make sure that the shared parameters can be moved.

    Raises:
        InvalidInputError: naming the complex ones, or if some are sharded.
    """
    named = problem.named_shared
    complex_ones = [name for name, p in named.items() if p.is_complex()]
    if complex_ones:
        raise InvalidInputError(
            f"`shared` must hold real parameters to be teleported, got complex {', '.join(complex_ones)}. Leave them "
            "out of `shared`, or keep their real and imaginary parts as two real parameters."
        )
    if is_sharded(named.values()):
        raise InvalidInputError(
            "`shared` must hold whole parameters to be teleported, got sharded ones. Replicate the model, with "
            "step(group=...)."
        )


def learning_rate(optimizer: Optimizer, problem: Problem) -> float | None:
    """The learning rate of the first shared parameter."""
    first = problem.shared[0]
    for group in optimizer.param_groups:
        if any(p is first for p in group["params"]):
            return float(group["lr"]) if "lr" in group else None
    return None
