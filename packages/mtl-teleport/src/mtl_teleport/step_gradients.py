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

__all__ = ["check_parameters", "check_rate", "copied", "learning_rate", "present_update", "with_losses"]


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
    """The learning rate of the first shared parameter that the optimiser holds."""
    group = _group(optimizer, problem)
    return None if group is None or "lr" not in group else float(group["lr"])


def check_rate(optimizer: Optimizer, problem: Problem, asker: str, way_out: str) -> None:
    """Make sure that an optimiser has a learning rate for the shared parameters. Its value is not looked at.

    In every step, since a teleport may be due only after hours.

    Args:
        optimizer: the optimiser, not a wrapper of it.
        problem: the problem.
        asker: what needs the learning rate.
        way_out: what can be done but for another optimiser.

    Raises:
        InvalidInputError: it holds none of them, or says no learning rate.
    """
    group = _group(optimizer, problem)
    if group is not None and "lr" in group:
        return
    names = list(problem.named_shared)
    those = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    kind = type(optimizer).__name__
    if group is None:
        held = sum(len(group["params"]) for group in optimizer.param_groups)
        raise InvalidInputError(
            f"`optimizer` must hold shared parameters, whose learning rate {asker} needs, got {kind} with {held} "
            f"parameters and none of {those}. Give the optimiser of the shared parameters{way_out}."
        )
    settings = ", ".join(sorted(str(key) for key in group if key != "params")) or "nothing"
    raise InvalidInputError(
        f"`optimizer` must have an entry 'lr' in the group of {those}, which {asker} needs, got {kind} with {settings}"
        f" there. Add it{way_out}."
    )


def _group(optimizer: Optimizer, problem: Problem) -> dict[str, Any] | None:
    """The optimiser's group of the first shared parameter that it holds."""
    first = problem.shared[0]
    for group in optimizer.param_groups:
        if any(p is first for p in group["params"]):  # nearly always, and soon
            return group
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return next((found[id(p)] for p in problem.shared if id(p) in found), None)
