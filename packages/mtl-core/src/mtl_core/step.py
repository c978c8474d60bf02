"""One training step of any method: forward, gradients, update."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import MicroBatches, accumulate
from mtl_core.backward import check_finite_losses
from mtl_core.collection import collect_problem
from mtl_core.combination import combine, combine_per_group, is_loss_weighting, loss_weights
from mtl_core.distributed import (
    broadcast_buffers_,
    is_sharded,
    mean_over_tasks_present_,
    reshard,
    shard_group,
    sum_over_ranks_,
)
from mtl_core.errors import InvalidInputError, InvalidJacobianError, InvalidParameterError
from mtl_core.flat import pick
from mtl_core.gradients import Keep, TaskGradients
from mtl_core.graph import check_attached
from mtl_core.problem import Problem, TaskLosses
from mtl_core.protocols import Aggregator, Event, LossWeighting, Method, Weighting
from mtl_core.report import Note, SkippedUpdate, StepOptions, StepReport

__all__ = ["AnyMethod", "collect_problem", "finish", "is_loss_weighting", "step", "step_from_losses"]

AnyMethod = Method | Weighting | LossWeighting | Aggregator
"""What ``step`` accepts as a method."""


def step(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    *,
    heads: Literal["unit", "weighted"] = "unit",
    max_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    keep: Keep = "jacobian",
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    per: Literal["model", "layer", "parameter"] = "model",
) -> StepReport:
    """One training step: evaluate the losses, differentiate, combine by ``method``, clip, update.

    The optimiser's gradients are cleared first. The cheapest route that the method allows is taken: a loss weighting
    costs one backward pass, everything else one per task through the shared part.

    Args:
        problem: the model and its losses.
        batch: what the problem's losses take, or ``MicroBatches`` of it.
        optimizer: any ``torch.optim`` optimiser over the problem's parameters.
        method: a ``Method``, ``Weighting``, ``LossWeighting`` or ``Aggregator``, or any callable from a Jacobian
            ``[m, d]`` to an update ``[d]``, such as the aggregators of other libraries.
        heads: ``"unit"``: each head follows its own loss; ``"weighted"``: its loss times the method's weight.
        max_norm: clip the combined gradient of the shared parameters to this norm.
        scaler: a gradient scaler, for mixed precision.
        keep: ``"jacobian"``, or ``"gramian"`` where ``m`` gradients are too much to hold, or ``"features"``; see
            ``collect``.
        chunk_size: how many tasks are differentiated at once; see ``collect``.
        group: a process group: every rank gives its part of the batch, and all take the same step on the mean losses.
        per: apply the method to the whole ``"model"``, or by itself to each ``"layer"`` or ``"parameter"``.

    Returns:
        losses, weights and events of the step, as plain detached tensors.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; nothing was updated. With a scaler too: an overflow of the
            gradients is then skipped, but a loss that is itself not finite is an error.
        DetachedLossError: a loss does not depend on the shared parameters.
        InvalidInputError: the method does not fit one of the four protocols, or returns the wrong shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 2, bias=False)
        >>> problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> report = step(problem, torch.eye(2), optimizer, lambda jacobian: jacobian.mean(0))
        >>> report.losses.shape
        torch.Size([2])
    """
    options = StepOptions(
        heads=heads, max_norm=max_norm, scaler=scaler, keep=keep, chunk_size=chunk_size, group=group, per=per
    )
    with problem.reporting() as report_to_hooks:
        report = _step(problem, batch, optimizer, method, options)
    report_to_hooks(report)
    return report


def _step(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    options: StepOptions,
) -> StepReport:
    own = getattr(method, "step", None)
    if callable(own):
        return _delegate(own, problem, batch, optimizer, options)
    if not callable(method) and not callable(getattr(method, "weights", None)):
        raise InvalidInputError(
            f"`method` must have step(), weights() or be callable on a Jacobian [m, d], got {type(method).__name__}. "
            "See mtl_core.protocols."
        )
    optimizer.zero_grad(set_to_none=True)
    if options.group is not None:
        broadcast_buffers_(problem.model, options.group)
    if isinstance(batch, MicroBatches):
        gradients = accumulate(problem, batch, options=options)
        return finish(problem, batch, optimizer, method, gradients, options=options)
    losses = problem.losses(batch)
    return step_from_losses(problem, batch, optimizer, method, losses, options=options)


def step_from_losses(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    losses: TaskLosses,
    *,
    options: StepOptions,
) -> StepReport:
    """The part of ``step`` that follows the forward pass, for any method that does not own its step."""
    if is_loss_weighting(method):
        return _loss_step(problem, batch, optimizer, method, losses, options)
    gradients = collect_problem(problem, losses, options=options)
    return finish(problem, batch, optimizer, method, gradients, options=options)


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
    _update(problem, optimizer, options)
    ranks = shard_group(problem.shared) if is_sharded(problem.shared) else options.group
    _look_back(method, problem, batch, gradients.losses, ranks)
    events = (*(Note(text) for text in gradients.notes), *_events(method))
    names = problem.shared_names
    skipped = (*problem.frozen_names, *(names[k] for k in gradients.untouched))
    return StepReport(gradients.losses, weights, host, problem.tasks, events, skipped)


def _loss_step(
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
    elif single:
        torch.autograd.backward([values], [own], inputs=[*problem.shared, *heads])
    else:
        torch.autograd.backward([values], [ones], inputs=heads, retain_graph=True)
        torch.autograd.backward([values], [own], inputs=list(problem.shared))
    named = problem.named_shared
    skipped = (*problem.frozen_names, *(name for name, p in named.items() if p.grad is None))
    if ranks is not None and not sharded:
        _sum_gradients((*problem.shared, *heads), ranks)
    _update(problem, optimizer, options)
    _look_back(method, problem, batch, full, ranks)
    return StepReport(full, weights, None, problem.tasks, _events(method), skipped)


def _sum_gradients(parameters: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum what each rank has written; a rank without a parameter's task adds zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks_([p.grad for p in parameters if p.grad is not None], group)


def _update(problem: Problem, optimizer: optim.Optimizer, options: StepOptions) -> None:
    """Unscale, clip and step, in this order, from gradients that are written."""
    if options.scaler is not None:
        options.scaler.unscale_(optimizer)
    if is_sharded(problem.shared):
        reshard(problem.model)
    if options.max_norm is not None:
        torch.nn.utils.clip_grad_norm_(problem.shared, options.max_norm)
    if options.scaler is None:
        optimizer.step()
    else:
        options.scaler.step(optimizer)
        options.scaler.update()


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


def _look_back(method: object, problem: Problem, batch: Any, before: Tensor, group: dist.ProcessGroup | None) -> None:
    after_step = getattr(method, "after_step", None)
    if not callable(after_step):
        return

    def after() -> Tensor:
        parts = batch if isinstance(batch, MicroBatches) else (batch,)
        with torch.no_grad():
            found = [problem.losses(part) for part in parts]
        full = torch.stack([losses.full(float("nan")) for losses in found]).nanmean(dim=0)
        present = sorted({task for losses in found for task in losses.index})
        return full if group is None else mean_over_tasks_present_(full, present, group)[0]

    after_step(before, after)


def _events(method: object) -> tuple[Event, ...]:
    pop: Callable[[], tuple[Event, ...]] | None = getattr(method, "pop_events", None)
    return () if pop is None else tuple(pop())


def _delegate(
    own: Callable[..., StepReport], problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions
) -> StepReport:
    """Hand the step to a ``Method``; options only where it takes them."""
    if options == StepOptions():
        return own(problem, batch, optimizer)
    if "options" not in inspect.signature(own).parameters:
        raise InvalidInputError(
            f"`method.step` must take `options` for heads, max_norm or scaler to have an effect, got {options} for "
            f"{own.__qualname__}. "
            "Add the keyword, or call step() without these settings."
        )
    return own(problem, batch, optimizer, options=options)
