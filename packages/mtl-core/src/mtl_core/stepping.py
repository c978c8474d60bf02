"""One training step of any method: forward, gradients, update."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import MicroBatches, accumulate
from mtl_core.collection import collect_problem
from mtl_core.combination import is_loss_weighting
from mtl_core.distributed import broadcast_buffers_, is_sharded
from mtl_core.errors import InvalidInputError
from mtl_core.gradient_step import finish
from mtl_core.gradients import Keep
from mtl_core.loss_step import accumulated_loss_step, loss_step
from mtl_core.problem import Problem, TaskLosses
from mtl_core.protocols import AnyMethod
from mtl_core.report import StepOptions, StepReport
from mtl_core.update import refuse_closure

__all__ = ["AnyMethod", "collect_problem", "finish", "is_loss_weighting", "step", "step_from_losses"]


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
    refuse_closure(optimizer)
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
        if is_loss_weighting(method) and options.per == "model" and not is_sharded(problem.shared):
            return accumulated_loss_step(problem, batch, optimizer, method, options)
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
        return loss_step(problem, batch, optimizer, method, losses, options)
    gradients = collect_problem(problem, losses, options=options)
    return finish(problem, batch, optimizer, method, gradients, options=options)


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
