"""What every step begins with, whatever the method."""

from __future__ import annotations

import torch
from torch import optim
from torch.nn.parameter import is_lazy

from mtl_core.agreement import together
from mtl_core.collection import ranks_of
from mtl_core.distributed import broadcast_buffers_
from mtl_core.errors import InvalidInputError, NoSharedParametersError
from mtl_core.graph_checks import note_foreign
from mtl_core.listing import Listing
from mtl_core.optimizers import (
    clear_gradients,
    refuse_closure,
    refuse_differentiable,
    refuse_unsynchronised,
    uncovered,
)
from mtl_core.problem import Problem
from mtl_core.report import Note, StepOptions
from mtl_core.wrapped_models import refuse_wrapped

__all__ = ["begin"]


def begin(problem: Problem, optimizer: optim.Optimizer, options: StepOptions) -> tuple[Note, ...]:
    """What every step of every method begins with: check what it is given, clear gradients, let ranks agree.

    In this order: what is wrong with the surroundings is said before anything is touched; every gradient that the step
    or the optimiser could see is cleared, those of parameters that the optimiser does not hold included, which would
    pile up otherwise; and with a group every rank takes the buffers of the first.

    Args:
        problem: the problem.
        optimizer: the optimiser.
        options: the step's options.

    Returns:
        what there is to say about it, once.

    Raises:
        NoSharedParametersError: all shared parameters are frozen.
        InvalidInputError: gradients are switched off, the model is wrapped for data parallelism, the optimiser needs a
            closure or differentiates its own step, does not step now, or holds no parameter of the problem, or a hook
            updates parameters during the backward pass.
    """
    group = options.group
    # A rank that is refused here must not leave the others waiting, for its buffers or in whatever they do together
    # next.
    with together(ranks_of(problem, options)):
        _refuse_surroundings(problem)
        refuse_closure(optimizer)
        refuse_differentiable(optimizer)
        refuse_unsynchronised(optimizer)
        missing = uncovered(problem, optimizer)
        note_foreign(problem, optimizer, len(problem.named_trainable) - len(missing))
    # To None, not zero: a parameter that no task touches must have no gradient, or weight decay would move it.
    clear_gradients(optimizer)
    for parameter in problem.named_trainable.values():
        parameter.grad = None
    if group is not None:
        # Running statistics differ by rank, as each sees its own part of the batch; evaluated with them, ranks would
        # drift.
        broadcast_buffers_(problem.model, group)
    if not missing or missing in problem.told:
        return ()
    problem.told.add(missing)
    listed = f"{', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}"
    return (
        Note(
            f"the optimiser does not hold {len(missing)} trainable parameters ({listed}): they get gradients, which "
            "are cleared at the next step, and do not move. Give them to this optimiser, or step another one for them."
        ),
    )


def _refuse_surroundings(problem: Problem) -> None:
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        where = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise InvalidInputError(f"gradients must be enabled for a training step, got {where}. Step outside of it.")
    listing = problem.listing
    if not listing.shared:
        raise NoSharedParametersError(
            f"at least one shared parameter must be trainable in a step, got {len(listing.all_shared)} parameter(s), "
            "all frozen since the problem was made. Set requires_grad=True on what the tasks are to share."
        )
    refuse_wrapped(listing.modules)
    _refuse_uninitialized(listing)
    if problem.is_sharded:
        return  # the sharding's own hooks are meant
    hooked = [name for name, p in listing.named_trainable.items() if p._post_accumulate_grad_hooks]
    if hooked:
        raise InvalidInputError(
            "parameters must be left alone until the step's gradients are complete, got a hook after accumulation on "
            f"{', '.join(hooked[:4])}, which a backward pass of one task would run and another method's would not. "
            "Remove it (handle.remove()), and clip by step(max_norm=, clip=) and update by the optimiser given to step."
        )
    made = [name for name, p in listing.named_trainable.items() if p.is_inference()]
    if made:
        raise InvalidInputError(
            f"parameters must not be made in inference mode to be trained, got {', '.join(made[:4])}. Make the model "
            "outside of torch.inference_mode()."
        )


def _refuse_uninitialized(listing: Listing) -> None:
    lazy = [name for name, p in listing.named_trainable.items() if is_lazy(p)]
    if lazy:
        raise InvalidInputError(
            f"parameters must be made before the first step, got {', '.join(lazy[:4])} of lazy modules. Call "
            "model(batch) once, which gives them their shapes."
        )
