"""The end of every step: unscale, clip, update, and look at the losses again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import losses_of_parts, mean_of
from mtl_core.agreement import together
from mtl_core.distributed import mean_over_tasks_present_, reshard
from mtl_core.errors import InvalidInputError
from mtl_core.evaluation import evaluate_without_graph
from mtl_core.optimizers import inner_optimizer
from mtl_core.problem import Problem
from mtl_core.protocols import LearnsAfterStep, ReportsEvents, offers
from mtl_core.report import Event, SkippedUpdate, StepOptions

__all__ = ["conclude", "events_of"]


def conclude(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: object,
    losses: Tensor,
    options: StepOptions,
    ranks: dist.ProcessGroup | None,
) -> tuple[SkippedUpdate, ...]:
    """Unscale, clip and update, from gradients that are written; then let the method learn from what that did.

    Args:
        problem: the problem.
        batch: the step's batch, for a second look at its losses.
        optimizer: the optimiser.
        method: the method; told of the losses before and after where it wants to know.
        losses: ``[m]`` before the update.
        options: the step's options.
        ranks: the ranks that make the step together.

    Returns:
        nothing, or that there was no update: a gradient scaler leaves the parameters alone where a gradient has
        overflowed, and lowers its scale. The method then learns nothing.
    """
    # One agreement for both: a rank whose optimiser raises must not leave the others in the sum over ranks that the
    # second look at the losses ends with.
    with together(ranks):
        undone = _update(problem, optimizer, options)
        if not undone and offers(method, LearnsAfterStep):
            method.after_step(losses, lambda: _losses_again(problem, batch, ranks))
    return undone


def _update(problem: Problem, optimizer: optim.Optimizer, options: StepOptions) -> tuple[SkippedUpdate, ...]:
    scaler = options.scaler
    # After a forward pass whole parameters lie in the model; the optimiser holds the shards, and their gradients are
    # what is clipped.
    if problem.is_sharded:
        reshard(problem.model)
    if scaler is not None:
        scaler.unscale_(optimizer)
        _unscale_others(problem, optimizer, scaler)
    _clip(problem, options)
    _check_layouts(problem, optimizer)
    if problem.under_way is not None and options.reversible:
        problem.under_way.hold_update()
    if scaler is None:
        optimizer.step()
        return ()
    # Torch tells of an update that it left out by nothing but a lowered scale.
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    after = scaler.get_scale()
    return (SkippedUpdate(after),) if after < before else ()


def _unscale_others(problem: Problem, optimizer: optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Divide the loss scale out of gradients that the optimiser does not hold, and so the scaler does not see."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = [p.grad for p in problem.named_trainable.values() if id(p) not in held and p.grad is not None]
    for gradient in others:
        gradient.div_(scaler.scale(torch.ones((), device=gradient.device)))


def _clip(problem: Problem, options: StepOptions) -> None:
    if options.max_norm is None and not callable(options.clip):
        return
    chosen = problem.shared if options.clip == "shared" else tuple(problem.named_trainable.values())
    there = [p for p in chosen if p.grad is not None]
    if callable(options.clip):
        options.clip(there)
    elif any(p.grad is not None and p.grad.layout != torch.strided for p in there):
        assert options.max_norm is not None
        _clip_sparse(there, options.max_norm)
    else:
        assert options.max_norm is not None
        torch.nn.utils.clip_grad_norm_(there, options.max_norm)


def _clip_sparse(parameters: Sequence[Tensor], max_norm: float) -> None:
    """As ``clip_grad_norm_``, which takes no sparse gradients."""
    gradients = [p.grad.coalesce() if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    stored = [g.values() if g.is_sparse else g for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(values) for values in stored]))
    # The constant is that of clip_grad_norm_, so that dense and sparse gradients are clipped alike.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter, gradient in zip((p for p in parameters if p.grad is not None), gradients, strict=True):
        parameter.grad = gradient * factor.to(gradient.dtype)


_TAKES_SPARSE = (optim.SGD, optim.SparseAdam, optim.Adagrad)
"""Of torch's optimisers; those of others are not known, and are left to say so themselves."""


def _check_layouts(problem: Problem, optimizer: Any) -> None:
    """Make sure, before anything moves, that the optimiser takes sparse gradients, or dense ones.

    Torch's optimisers find out in the middle of their step, when other groups have moved already.

    Raises:
        InvalidInputError: it does not.
    """
    sparse = [name for name, p in problem.named_trainable.items() if p.grad is not None and p.grad.is_sparse]
    if not sparse and not isinstance(optimizer, optim.SparseAdam):
        return
    own = inner_optimizer(optimizer) if isinstance(optimizer, optim.Optimizer) else optimizer
    if sparse and type(own).__module__.startswith("torch.optim.") and not isinstance(own, _TAKES_SPARSE):
        raise InvalidInputError(
            f"`optimizer` must take sparse gradients, which {', '.join(sparse[:4])} have, got {type(own).__name__}. "
            "Use SparseAdam, Adagrad or SGD for them, or embeddings with sparse=False."
        )
    if isinstance(own, optim.SparseAdam):
        held = {id(p) for group in own.param_groups for p in group["params"]}
        dense = [
            name
            for name, p in problem.named_trainable.items()
            if id(p) in held and p.grad is not None and not p.grad.is_sparse
        ]
        if dense:
            raise InvalidInputError(
                f"`optimizer` must take dense gradients, which {', '.join(dense[:4])} have in this step, got "
                "SparseAdam. Give these parameters to another optimiser, use a method that gives weights, which "
                "leaves sparse gradients sparse, or step without a process group."
            )


def _losses_again(problem: Problem, batch: Any, ranks: dist.ProcessGroup | None) -> Tensor:
    """The losses ``[m]`` of the same batch after the update."""
    with together(ranks):
        found = list(losses_of_parts(problem, batch, partial(evaluate_without_graph, problem)))
    full, _ = mean_of(found)
    present = sorted({task for losses in found for task in losses.index})
    return full if ranks is None else mean_over_tasks_present_(full, present, ranks)[0]


def events_of(method: object) -> tuple[Event, ...]:
    """The events that a method has to tell of this step."""
    return tuple(method.pop_events()) if offers(method, ReportsEvents) else ()
