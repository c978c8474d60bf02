"""The step of a method that looks at gradients, from collected gradients on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

from mtl_core.agreement import together
from mtl_core.collecting.backward import is_on_host
from mtl_core.collecting.overflow import ORDINARY, first_unfit, largest_of
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.collection import ranks_of
from mtl_core.combination import aggregate, combine_per_group, weigh
from mtl_core.conflict import safe_cosine
from mtl_core.diagnosis import refuse_broken
from mtl_core.errors import InvalidInputError, InvalidParameterError, NonFiniteGradientError, NonFiniteLossError
from mtl_core.problem import Problem
from mtl_core.protocols import AnyMethod
from mtl_core.report import Event, Note, SkippedUpdate, StepOptions, StepReport
from mtl_core.update import conclude, events_of

__all__ = ["checked_gramian", "finish"]


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
        gradients: from ``collect_batch``; used up: they are gone before the optimiser's step.
        options: the step's options.

    Returns:
        the step's report.
    """
    options = StepOptions() if options is None else options
    ranks = ranks_of(problem, options)
    try:
        # Even for methods that need no Gramian: this is where losses and gradients are known to be finite, at the price
        # of the one copy from the device.
        host = checked_gramian(problem, batch, gradients, options)
    except NonFiniteGradientError:
        if not options.is_scaled:
            raise
        return _skip(problem, gradients, optimizer, options)
    with together(ranks):
        vector, weights = _combined(problem, method, gradients, host, options)
        alone = vector if options.measure_progress and weights is None else None
        progress = None if alone is None else _progress(gradients, alone)
    factor: Tensor | None = None
    if options.scaler is not None:
        # Scaled once more: the scaler looks for overflows and divides by its scale when it steps, and so expects scaled
        # gradients.
        factor = options.scaler.scale(torch.ones((), device=gradients.parameters[0].device))
        gradients.rescale_heads(factor)
    if vector is not None:
        gradients.write((vector if factor is None else vector * factor.to(vector.dtype)).detach())
    else:
        assert weights is not None
        gradients.write_combination(weights, factor=factor)
    gradients.assign_heads(weights if options.heads == "weighted" else None)
    # The optimiser needs room of its own, and the callers of this function hold on to what they have given.
    del vector
    gradients.drop()
    undone = conclude(problem, batch, optimizer, method, gradients.losses, options, ranks)
    events: tuple[Event, ...] = (*(Note(text) for text in gradients.notes), *undone, *events_of(method))
    skipped = _skipped(problem, gradients)
    return StepReport(gradients.losses, weights, host, problem.tasks, events, skipped, progress)


def checked_gramian(problem: Problem, batch: Any, gradients: TaskGradients, options: StepOptions) -> Tensor:
    """The Gramian of collected gradients on the CPU, losses and gradients being finite.

    Args:
        problem: the problem.
        batch: the batch they are of.
        gradients: from ``collect_batch``.
        options: the step's options.

    Raises:
        NonFiniteLossError: a loss is not finite.
        NonFiniteGradientError: a gradient is not. On several ranks both name the rank, which a mean over them does not
            tell, unless a scaler makes nothing of it.
    """
    try:
        return gradients.host_gramian
    except (NonFiniteGradientError, NonFiniteLossError) as error:
        ranks = ranks_of(problem, options)
        if options.is_scaled and isinstance(error, NonFiniteGradientError):
            raise
        if ranks is None and len(error.tasks) == 1:
            raise
        # Several tasks that were differentiated together are all NaN where one is: zero times NaN is NaN.
        refuse_broken(problem, batch, ranks, error)


def _combined(
    problem: Problem, method: Any, gradients: TaskGradients, host: Tensor, options: StepOptions
) -> tuple[Tensor | None, Tensor | None]:
    """The update ``[d]`` where the method gives one, or its weights alone where they will do."""
    vector: Tensor | None = None
    if options.per != "model":
        vector, weights = combine_per_group(problem, method, gradients, options.per)
    else:
        weights = weigh(method, gradients, host)
        if weights is None:
            vector = aggregate(method, gradients.whole_matrix)
    if weights is None and options.heads == "weighted":
        raise InvalidParameterError(
            f"`heads='weighted'` needs a method that gives weights, got {type(method).__name__}, which gives "
            "only an update. Use heads='unit'."
        )
    may_overflow = False
    if vector is None and weights is not None:
        gradients.check_weights(weights)
        may_overflow = _may_overflow(gradients, weights, host)
        if may_overflow:
            vector = gradients.combine(weights)
        if options.heads == "weighted":
            gradients.heads.check_weighted(weights)
    # On a device not looked at, which would wait for it; the gradients that the update is made of were.
    if vector is not None and (may_overflow or is_on_host(vector)):
        unfit = first_unfit(gradients.parameters, vector.detach())
        if unfit is not None:
            raise InvalidInputError(
                f"`method` must give a finite update that fits in {unfit}, got one that does not from "
                f"{type(method).__name__} for finite gradients. Nothing was updated. Multiply the losses by a "
                "constant, or keep the parameters in a wider dtype."
            )
    return vector, weights


def _may_overflow(gradients: TaskGradients, weights: Tensor, host: Tensor) -> bool:
    r"""Whether a weighted sum might leave a parameter's dtype: its norm is at most :math:`\sum_i |w_i| \|g_i\|`.

    From numbers that are on the CPU already: no pass over the gradients, and nothing is waited for. That many entries
    have a large norm does not mean that one of them is large, so whoever is told of it has to look at the sum.
    """
    if not is_on_host(weights):
        return False
    sizes: list[float] = [abs(weight) for weight in weights.tolist()]
    # Plain numbers, for they are few: operations on tensors of them would take longer than the rest of this.
    squares = host.numpy().diagonal().tolist()
    bound = sum([size * math.sqrt(square) for size, square in zip(sizes, squares, strict=True) if square > 0.0])
    # With keep="features" the norms are those at the features.
    if sum(sizes) > ORDINARY:
        return True
    # The narrowest range first: a walk over the parameters' dtypes is not for every step.
    return bound > _FITS_EVERYWHERE and bound > min(largest_of(p.dtype) for p in gradients.parameters)


_FITS_EVERYWHERE = largest_of(torch.float16)


def _progress(gradients: TaskGradients, update: Tensor) -> Tensor:
    """The cosine of each task's gradient with an update ``[d]``, in the gradients' own dtype; waits for nothing."""
    matrix = gradients.whole_matrix.detach()
    direction = update.detach()
    return safe_cosine((matrix @ direction).double(), gradients.norms, direction.norm().double())


def _skipped(problem: Problem, gradients: TaskGradients) -> tuple[str, ...]:
    """The names of the shared parameters that took no part."""
    names = problem.shared_names
    return (*problem.frozen_names, *(names[k] for k in gradients.untouched))


def _skip(problem: Problem, gradients: TaskGradients, optimizer: optim.Optimizer, options: StepOptions) -> StepReport:
    """Let the scaler see the overflow, so that it leaves the parameters alone and lowers its scale."""
    scaler = options.scaler
    assert scaler is not None
    device, dtype = gradients.parameters[0].device, gradients.dtype
    # The scaler finds an overflow in .grad alone, where the gradients that overflowed were never written.
    gradients.write(torch.full((gradients.n_parameters,), float("inf"), device=device, dtype=dtype))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    for parameter in problem.named_trainable.values():
        # The infinities that were written for the scaler must not be found by whoever reads `.grad` next.
        parameter.grad = None
    skipped = _skipped(problem, gradients)
    return StepReport(gradients.losses, None, None, problem.tasks, (SkippedUpdate(scaler.get_scale()),), skipped)
