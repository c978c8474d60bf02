"""The step of a method that weighs losses: one backward pass through the shared part, whatever the number of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import losses_of_parts, mean_losses
from mtl_core.agreement import together
from mtl_core.collecting.backward import is_on_host
from mtl_core.collecting.finite import check_finite_losses
from mtl_core.collecting.flat import pick
from mtl_core.collecting.graph import check_attached, refuse_detached, roots_of
from mtl_core.collecting.heads import finite_flag
from mtl_core.collecting.reentrant import refuse_reentrant
from mtl_core.collection import collect_problem, ranks_of
from mtl_core.combination import loss_weights
from mtl_core.diagnosis import refuse_broken
from mtl_core.distributed import is_sharded, mean_over_tasks_present_, sum_over_ranks_
from mtl_core.errors import DetachedLossError, InvalidInputError
from mtl_core.gradient_step import finish
from mtl_core.gradient_sums import sum_gradients
from mtl_core.graph_checks import check_graph_once
from mtl_core.micro_batches import MicroBatches
from mtl_core.problem import Problem
from mtl_core.protocols import HasUnitWeights, offers
from mtl_core.report import StepOptions, StepReport
from mtl_core.task_losses import TaskLosses
from mtl_core.update import conclude, events_of

__all__ = ["loss_step"]


@dataclass(frozen=True)
class _Values:
    """The losses of a batch before any is differentiated.

    Attributes:
        full: ``[m]``, detached, NaN for an absent task.
        share: the factor ``[m]`` of each part's loss in the mean over parts and ranks; ``None`` where it is 1.
        present: positions of the tasks that are there.
        ready: the losses with their graph, where the batch is not in parts.
    """

    full: Tensor
    share: Tensor | None
    present: list[int]
    ready: TaskLosses | None


def loss_step(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: Any,
    options: StepOptions,
    losses: TaskLosses | None = None,
) -> StepReport:
    """A step of a loss weighting, on one batch or on micro-batches: the weights are known before anything is written.

    Args:
        problem: the problem.
        batch: what its losses take, or ``MicroBatches`` of it.
        optimizer: the optimiser, its gradients cleared.
        method: the loss weighting.
        options: the step's options.
        losses: those of the batch, if they are evaluated already.
    """
    ranks = ranks_of(problem, options)
    sharded = problem.is_sharded
    # Before the collective mean below: a rank that raised in its losses would leave the others waiting there.
    with together(ranks):
        seen = _evaluate(problem, batch, losses)
    if ranks is not None:
        # For a sharded model too: its hooks average gradients, but nothing averages the losses that the weights come
        # from.
        seen = _over_ranks(seen, ranks, sharded=sharded)
    # Likewise, before the collective sum of gradients.
    with together(ranks):
        weights = loss_weights(method, seen.full, seen.present)
        # On a device only where something is found to be wrong, since reading them waits for it.
        if is_on_host(weights):
            _refuse_weights(method, weights)
        single = _one_pass_does(problem, method, weights, seen, options)
        if sharded and not single and seen.ready is None:
            raise InvalidInputError(
                "micro-batches of a sharded model need heads='weighted', or a method whose weights are 1, got "
                f"{type(method).__name__} with heads='unit': the sharding's hooks see whole backward passes only."
            )
        if not (sharded and not single):
            _differentiate(problem, batch, seen, weights, options, single=single, sharded=sharded)
    if sharded and not single:
        # The sharding's hooks see whole backward passes only, so heads cannot be passed by themselves.
        assert seen.ready is not None
        gradients = collect_problem(problem, seen.ready, options=options)
        return finish(problem, batch, optimizer, method, gradients, options=options)
    parameters = (*problem.shared, *problem.heads)
    touched = [p.grad is not None for p in parameters]
    somewhere = None if ranks is None or sharded else sum_gradients(problem, parameters, touched, ranks)
    _check(problem, batch, seen, somewhere, options, ranks, partial(_refuse_weights, method, weights))
    skipped = (*problem.frozen_names, *[n for n, p in problem.named_shared.items() if p.grad is None])
    undone = conclude(problem, batch, optimizer, method, seen.full, options, ranks)
    if undone:
        # By such weights every step would be left out, as if gradients had overflowed.
        with together(ranks):
            _refuse_weights(method, weights)
    return StepReport(seen.full, weights, None, problem.tasks, (*undone, *events_of(method)), skipped)


def _evaluate(problem: Problem, batch: Any, losses: TaskLosses | None) -> _Values:
    if isinstance(batch, MicroBatches):
        full, counts = mean_losses(problem, batch)
        # Counts of 0, of tasks that no part has: their share is multiplied by zeros, and infinity would make them NaN.
        seen = _Values(full, 1.0 / counts.clamp(min=1.0), counts.nonzero().flatten().tolist(), None)
    else:
        ready = problem.losses(batch) if losses is None else losses
        _check_graph(problem, ready)
        full = ready.full(float("nan")).detach()
        seen = _Values(full, None, list(ready.index), ready)
    # On a device, reading the losses now would wait for it; they are read with the gradients' flag, in `_check`.
    if is_on_host(seen.full):
        check_finite_losses(seen.full, problem.tasks, seen.present)
    return seen


def _check_graph(problem: Problem, losses: TaskLosses) -> None:
    """Make sure that each loss depends on the shared parameters, in every step: one backward pass would not tell."""
    if problem.is_sharded:
        # The leaves are the gathered parameters, which the step does not list.
        roots = roots_of(losses.outputs)
        refuse_detached([t for t, root in zip(losses.tasks, roots, strict=True) if root is None], "shared parameters")
        return
    check_graph_once(problem, losses)
    try:
        check_attached(losses.outputs, losses.tasks, problem.shared, problem.ways)
    except DetachedLossError as error:
        refuse_reentrant(losses.outputs, error)
        raise


def _refuse_weights(method: Any, weights: Tensor) -> None:
    if not all(map(math.isfinite, weights.tolist())):
        raise InvalidInputError(
            f"`method` must give finite weights, got {weights.tolist()} from {type(method).__name__} for finite "
            f"losses. Look at what it makes of them, in {weights.dtype}."
        )


def _over_ranks(seen: _Values, ranks: dist.ProcessGroup, *, sharded: bool) -> _Values:
    # The weights must come from the same losses on every rank, or ranks would make different updates.
    full, counts = mean_over_tasks_present_(seen.full, seen.present, ranks)
    # The hooks of a sharded model take the mean over ranks themselves.
    share = seen.share
    if not sharded:
        among = 1.0 / counts.to(full).clamp(min=1.0)
        share = among if share is None else share * among
    return _Values(full, share, [i for i, count in enumerate(counts.tolist()) if count], seen.ready)


def _one_pass_does(problem: Problem, method: Any, weights: Tensor, seen: _Values, options: StepOptions) -> bool:
    """Whether trunk and heads can be differentiated together; weights are read only where that waits for nothing."""
    if not problem.heads or options.heads == "weighted":
        return True
    if offers(method, HasUnitWeights) and method.has_unit_weights:
        return True
    return is_on_host(weights) and all(weight == 1 for weight in pick(weights, seen.present).tolist())


def _differentiate(
    problem: Problem,
    batch: Any,
    seen: _Values,
    weights: Tensor,
    options: StepOptions,
    *,
    single: bool,
    sharded: bool,
) -> None:
    """Write the gradients of the weighted losses, part by part."""
    for losses in losses_of_parts(problem, batch) if seen.ready is None else (seen.ready,):
        if seen.ready is None:
            _check_graph(problem, losses)
        values = losses.values
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()  # the loss scale would make a half-precision loss overflow
        own = pick(weights, losses.index).to(values.dtype)
        ones = torch.ones_like(own)
        if seen.share is not None:
            ones = pick(seen.share, losses.index).to(values.dtype)
            own = own * ones
        if options.scaler is not None:
            # On the weights, m numbers, rather than on the losses: a loss times a large scale may overflow.
            own, ones = options.scaler.scale(own), options.scaler.scale(ones)
        if sharded:
            # Without `inputs`: the leaves are the gathered parameters, whose gradients the sharding's hooks take from
            # there.
            torch.autograd.backward([values], [own])
        else:
            try:
                _backward(problem, values, own, ones, single=single)
            except RuntimeError as error:
                refuse_reentrant(losses.outputs, error)
                raise
            without = [p.grad is None for p in problem.shared]
            if any(without):
                refuse_reentrant(losses.outputs)
            if all(without):
                refuse_detached(losses.tasks, "shared parameters")


def _backward(problem: Problem, values: Tensor, own: Tensor, ones: Tensor, *, single: bool) -> None:
    """Add the gradients of the weighted losses; the heads' with weights of their own unless one pass does for both."""
    heads, shared = list(problem.heads), list(problem.shared)
    if single:
        torch.autograd.backward([values], [own], inputs=[*shared, *heads])
    else:
        # With `inputs`, each pass writes to its own parameters only; the first keeps the graph for the second.
        torch.autograd.backward([values], [ones], inputs=heads, retain_graph=True)
        torch.autograd.backward([values], [own], inputs=shared)


def _check(
    problem: Problem,
    batch: Any,
    seen: _Values,
    somewhere: Tensor | None,
    options: StepOptions,
    ranks: dist.ProcessGroup | None,
    refuse_weights: Callable[[], None],
) -> None:
    """Read losses and one flag in one small copy, and refuse what is not finite before the update."""
    parameters = (*problem.shared, *problem.heads)
    # Under a scaler an overflow of the gradients is skipped by it; it looks at every gradient itself.
    written = [p.grad for p in parameters if p.grad is not None]
    flag: Tensor | None = None
    if written and options.check_gradients and not options.is_scaled:
        flag = finite_flag(written)
        if ranks is not None and problem.is_sharded:
            sum_over_ranks_([flag], ranks)
    losses, is_clean, counts = _read(seen.full, flag, somewhere)
    if not all(map(math.isfinite, [losses[i] for i in seen.present])):
        if ranks is None:
            check_finite_losses(seen.full, problem.tasks, seen.present)
        refuse_broken(problem, batch, ranks)
    if not is_clean and _is_broken(parameters):
        with together(ranks):
            refuse_weights()
        refuse_broken(problem, batch, ranks)
    if somewhere is not None:
        # Zero in place of no gradient would let weight decay and momentum move what no rank has a task for.
        for parameter, count in zip(parameters, counts, strict=True):
            if not count:
                parameter.grad = None


def _read(full: Tensor, flag: Tensor | None, somewhere: Tensor | None) -> tuple[list[float], bool, list[float]]:
    """The losses as numbers, whether the flag is finite, and the counts of ranks."""
    if is_on_host(full) and (flag is None or is_on_host(flag)) and (somewhere is None or is_on_host(somewhere)):
        counts = [] if somewhere is None else somewhere.tolist()
        return full.tolist(), flag is None or math.isfinite(float(flag)), counts
    # Counts of ranks and the flag travel in the same tensor as the losses; half precision would round them.
    like = full.to(torch.promote_types(full.dtype, torch.float32))
    parts = [like, like.new_zeros(1) if flag is None else flag.to(like).reshape(1)]
    host = torch.cat(parts if somewhere is None else [*parts, somewhere.to(like)]).cpu().tolist()
    m = len(full)
    return host[:m], math.isfinite(host[m]), host[m + 1 :]


def _is_broken(parameters: Sequence[Tensor]) -> bool:
    """Whether the flag means what it says: it may also stand for a sum that overflowed.

    Replicated ranks hold the same sums and answer alike. A sharded rank sees its own part only; there the flag is
    believed.
    """
    if is_sharded(parameters):
        return True
    found = [p.grad for p in parameters if p.grad is not None]
    return any(not bool(torch.isfinite(g._values() if g.is_sparse else g).all()) for g in found)
