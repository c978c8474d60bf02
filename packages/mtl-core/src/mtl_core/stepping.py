"""One training step of any method: forward, gradients, update."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.beginning import begin
from mtl_core.collection import collect_batch, collect_problem
from mtl_core.errors import InvalidInputError
from mtl_core.gradient_step import finish
from mtl_core.guard import guarded
from mtl_core.loss_step import loss_step
from mtl_core.problem import Problem
from mtl_core.protocols import AnyMethod, Method, is_loss_weighting, offers
from mtl_core.report import Clip, Keep, StepOptions, StepReport
from mtl_core.task_losses import TaskLosses

__all__ = ["step", "step_from_losses"]


def step(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    *,
    heads: Literal["unit", "weighted"] = "unit",
    max_norm: float | None = None,
    clip: Clip = "shared",
    scaler: torch.amp.GradScaler | None = None,
    keep: Keep = "jacobian",
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    per: Literal["model", "layer", "parameter"] = "model",
    check_gradients: bool = True,
    reversible: bool = False,
    measure_progress: bool = False,
) -> StepReport:
    """One training step: evaluate the losses, differentiate, combine by ``method``, clip, update.

    Gradients are cleared first. The cheapest route that the method allows is taken: a loss weighting costs one backward
    pass, everything else one per task through the shared part.

    Nothing moves before it is known to be good: an error leaves parameters, buffers, ``.grad``, random state, and what
    the optimiser, the scaler and the method remember, as they were before the call, on every rank of a group. Two
    things come after the update and cannot be undone unless ``reversible``: an error inside the optimiser's own step,
    and one in the second look at the losses that some loss weightings take (FAMO); then parameters and optimiser have
    moved, and nothing else has.

    Args:
        problem: the model and its losses.
        batch: what the problem's losses take, or ``MicroBatches`` of it.
        optimizer: any ``torch.optim`` optimiser over the problem's parameters.
        method: a ``Method``, ``Weighting``, ``LossWeighting`` or ``Aggregator``, or any callable from a Jacobian
            ``[m, d]`` to an update ``[d]``, such as the aggregators of other libraries.
        heads: ``"unit"``: each head follows its own loss; ``"weighted"``: its loss times the method's weight.
        max_norm: clip gradients to this norm. By default the combined gradient of the *shared* parameters alone, which
            is what the weighting made; ``clip_grad_norm_(model.parameters())`` is ``clip="all"``.
        clip: ``"shared"`` or ``"all"``: what ``max_norm`` is about; or a callable that clips in its place, given the
            parameters that have a gradient. For one with a memory see ``StepOptions``.
        scaler: a gradient scaler, for mixed precision.
        keep: ``"jacobian"``, or ``"gramian"`` where ``m`` gradients are too much to hold, or ``"features"``; see
            ``collect``.
        chunk_size: how many tasks are differentiated at once; see ``collect``.
        group: a process group: every rank gives its part of the batch, and all take the same step on the mean losses.
        per: apply the method to the whole ``"model"``, or by itself to each ``"layer"`` or ``"parameter"``.
        check_gradients: whether gradients must be finite, those of the heads included; see ``StepOptions``.
        reversible: whether the update itself is taken back at an error after it; see ``StepOptions``.
        measure_progress: whether the report tells how each task fares by an update without weights.

    Returns:
        losses, weights and events of the step, as plain detached tensors.

    Raises:
        NoLossesError: no task has a loss: in the batch, or in any of its micro-batches, of which those without are left
            out; or on some rank of a group. Nothing was updated, on any rank, and a loop may pass over the batch.
        NonFiniteLossError: a loss is NaN or infinite; nothing was updated. With a scaler too: an overflow of the
            gradients is then skipped, but a loss that is itself not finite is an error.
        NonFiniteGradientError: a gradient is, of the shared parameters or of a head, though the losses are finite.
        DetachedLossError: a loss does not depend on the shared parameters, in this step or in any other.
        InvalidInputError: the method does not fit one of the four protocols, or returns the wrong shape, or an update
            or weights that lead out of the parameters' dtype; a loss is not of a real floating dtype, or depends on
            parameters that the optimiser holds and the model does not have; gradients are
            switched off; the model is wrapped, or recomputes activations by reentrant checkpoints; the optimiser does
            not fit (see ``mtl_core.extension.begin``).
        RankError: another rank raised an error of a type that is not known here.

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
        heads=heads,
        max_norm=max_norm,
        clip=clip,
        scaler=scaler,
        keep=keep,
        chunk_size=chunk_size,
        group=group,
        per=per,
        check_gradients=check_gradients,
        reversible=reversible,
        measure_progress=measure_progress,
    )
    with guarded(problem, optimizer, method, options), problem.reporting() as report_to_hooks:
        report = _step_of(problem, batch, optimizer, method, options)
    # Outside of the guard: an error in a hook must not undo half of a step that was made.
    report_to_hooks(report)
    return report


def _step_of(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    options: StepOptions,
) -> StepReport:
    """The step of any method, within ``guarded`` and without telling the problem's hooks of it."""
    if offers(method, Method):
        return _delegate(method.step, problem, batch, optimizer, options)
    notes = begin(problem, optimizer, options)
    if is_loss_weighting(method):  # one weight per loss is the same one for every layer, whatever `per`
        report = loss_step(problem, batch, optimizer, method, options)
    else:
        gradients = collect_batch(problem, batch, options=options)
        report = finish(problem, batch, optimizer, method, gradients, options=options)
    return replace(report, events=(*notes, *report.events)) if notes else report


def step_from_losses(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    losses: TaskLosses,
    *,
    options: StepOptions,
) -> StepReport:
    """The part of ``step`` that follows ``begin`` and the forward pass, for any method that does not own its step.

    Args:
        problem: the problem.
        batch: of which the losses are.
        optimizer: the optimiser, its gradients cleared by ``begin``.
        method: any method but a ``Method``.
        losses: what ``problem.losses(batch)`` returned.
        options: how the step treats heads, clipping and scaling.
    """
    if is_loss_weighting(method):
        return loss_step(problem, batch, optimizer, method, options, losses)
    gradients = collect_problem(problem, losses, options=options)
    return finish(problem, batch, optimizer, method, gradients, options=options)


def _delegate(
    own: Callable[..., StepReport], problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions
) -> StepReport:
    """Hand the step to a ``Method``; options only where it takes them."""
    # A `Method` of somebody else need not know of options as long as none is asked for; one that is dropped silently
    # would make the run another than the one described.
    if options == StepOptions():
        return own(problem, batch, optimizer)
    if "options" not in inspect.signature(own).parameters:
        raise InvalidInputError(
            f"`method.step` must take `options` for heads, max_norm or scaler to have an effect, got {options} for "
            f"{own.__qualname__}. "
            "Add the keyword, or call step() without these settings."
        )
    return own(problem, batch, optimizer, options=options)
