"""What a step knows before anything moves: the task gradients, the update that was due, the learning rate."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import InvalidInputError, Method, NoLossesError, Problem, StepOptions, TaskGradients
from mtl_core.extension import combine, combine_per_group, evaluate_without_graph, is_sharded, offers, preserved

__all__ = ["check_parameters", "copied", "learning_rate", "present_update", "with_losses"]


def present_update(
    problem: Problem, wrapped: Any, gradients: TaskGradients, options: StepOptions
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The update that the wrapped method would make before the teleport, and its weights, if it has any.

    It leaves no trace in the method's state.
    """
    method: Any = wrapped
    weights: Tensor | None = None
    if offers(method, Method):
        # A method that owns its step tells no update beforehand; the mean gradient stands for it.
        update = gradients.combine(
            torch.full((gradients.n_tasks,), 1.0 / gradients.n_tasks, dtype=torch.float64, device="cpu")
        )
    else:
        # A copy is asked: weights of methods with memory move with each question, and this is not yet the step.
        method = copied(wrapped)
        if options.per != "model":
            update, weights = combine_per_group(problem, method, gradients, options.per)
        else:
            update, weights = combine(method, gradients, gradients.host_gramian)
    parts = torch.split(update.detach(), [p.numel() for p in problem.shared])
    named = {n: part.view(p.shape) for part, (n, p) in zip(parts, problem.named_shared.items(), strict=True)}
    return named, weights


def with_losses(problem: Problem, parts: Iterable[Any]) -> tuple[Any, ...]:
    """Those of a batch's parts in which some task has a loss, the others are left out as by the step itself."""
    found: list[Any] = []
    with preserved(problem.model):
        for part in parts:
            with suppress(NoLossesError):
                evaluate_without_graph(problem, part)
                found.append(part)
    return tuple(found)


def copied(method: Any) -> Any:
    """A copy of a method that makes no step of its own.

    Raises:
        InvalidInputError: it cannot be copied.
    """
    try:
        return copy.deepcopy(method)
    except (TypeError, RuntimeError, AttributeError, pickle.PickleError) as error:
        raise InvalidInputError(
            "`method` must be one that copy.deepcopy can copy, since a copy is asked for the update that was due "
            f"before a move, got {type(method).__name__}: {error}. Give it a __deepcopy__(memo), or a step of its own."
        ) from error


def check_parameters(problem: Problem) -> None:
    """Make sure that the shared parameters can be moved, and the losses evaluated where they are moved to.

    In every step, since a teleport may be due only after hours.

    Raises:
        InvalidInputError: naming the complex ones or those without values, or if some are sharded; or the model is
            scripted.
        DuplicateModuleError: the model registers one submodule twice.
    """
    problem.check_functional()
    named = problem.named_shared
    empty = [name for name, p in named.items() if p.is_meta]
    if empty:
        raise InvalidInputError(
            f"`shared` must hold values to be teleported, got {', '.join(empty[:4])} on the meta device. Move the "
            "model by to_empty(device=...) and load its weights."
        )
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
