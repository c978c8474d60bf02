"""How an error in a step is undone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mtl_core.autocasting import in_full_precision
from mtl_core.errors import InvalidInputError
from mtl_core.listing import modules_of
from mtl_core.naming import naming_tasks
from mtl_core.optimizers import inner_optimizer, parameters_of, refuse_other
from mtl_core.preservation import Contents, Trace
from mtl_core.problem import Problem
from mtl_core.protocols import Draws, Remembers, ReportsEvents, check_method, offers
from mtl_core.report import StepOptions

__all__ = ["Guard", "guarded", "memory_of"]


class Guard:
    """What an error in a step must leave as it was: ``.grad``, buffers, random state, the method's and scaler's state.

    Gradients are held by reference, which is safe since a step puts new tensors in their place instead of writing into
    them. Parameters and the optimiser's state are not held, for they move last: by then everything is known to be
    finite and that no rank has failed. What can fail after that is a second look at the losses; see
    ``StepOptions.reversible``.

    Args:
        problem: the problem.
        optimizer: the optimiser.
        method: the method.
        options: the step's options.

    Attributes:
        trace: buffers and random state where the step began.
    """

    def __init__(self, problem: Problem, optimizer: Any, method: object, options: StepOptions) -> None:
        self._optimizer = optimizer
        self._method = method
        self._gradients = [(p, p.grad) for p in parameters_of(problem, optimizer)]
        self.trace = Trace(problem.model, problem.listing.modules)
        self._memory = memory_of(method)
        if callable(options.clip):
            self._memory += memory_of(options.clip)
        self._scaler = options.scaler
        self._scaler_state = None if options.scaler is None else _state_of(options.scaler)
        self._parameters: list[tuple[Tensor, Tensor]] | None = None
        self._optimizer_state: dict[Any, Any] | None = None

    def hold_update(self) -> None:
        """Keep a copy of parameters and the optimiser's state, before they move."""
        if self._parameters is not None:
            return
        # Only with `reversible`: a copy of parameters and optimiser costs three times the parameters under Adam.
        # Wrappers of an optimiser may show its state in a copy; only the owner's can be put back.
        own = inner_optimizer(self._optimizer)
        self._parameters = [(p, p.detach().clone()) for p, _ in self._gradients]
        self._optimizer_state = {p: copy.deepcopy(state) for p, state in own.state.items()}
        self._settings = [{name: value for name, value in g.items() if name != "params"} for g in own.param_groups]

    def undo(self, error: BaseException) -> None:
        """Put everything back; what fails in that is noted on the error that made it necessary, and the rest goes on.

        Args:
            error: what was raised in the step.
        """
        parts = (
            self._undo_gradients,
            self.trace.restore,
            *self._memory,
            self._undo_events,
            self._undo_scaler,
            self._undo_update,
        )
        for part in parts:
            try:
                part()
            except Exception as failed:  # noqa: BLE001 - whatever it is, the error before it is the one to see
                error.add_note(f"In undoing the step: {type(failed).__name__}: {failed}")

    def _undo_gradients(self) -> None:
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def _undo_events(self) -> None:
        if offers(self._method, ReportsEvents):
            self._method.pop_events()  # of a step that was not made

    def _undo_scaler(self) -> None:
        if self._scaler is not None and self._scaler_state is not None:
            # The held values themselves are put in place, which is safe once: a guard undoes one step.
            vars(self._scaler).update(self._scaler_state)

    @torch.no_grad()
    def _undo_update(self) -> None:
        if self._parameters is None or self._optimizer_state is None:
            return
        # In place: model and optimiser refer to these very tensors.
        for parameter, value in self._parameters:
            parameter.copy_(value)
        own = inner_optimizer(self._optimizer)
        # Optimisers make a parameter's state in its first step; such entries would otherwise outlive the step that
        # failed.
        own.state.clear()
        own.state.update(self._optimizer_state)
        # Some optimisers keep counters or adapted learning rates in their groups.
        for group, settings in zip(own.param_groups, self._settings, strict=True):
            group.update(settings)


def _state_of(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """A gradient scaler's scale, count and record of which optimisers it has unscaled."""
    held = {name: value for name, value in vars(scaler).items() if name in _SCALER_STATE}
    return {name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in held.items()}


_SCALER_STATE = ("_scale", "_growth_tracker", "_per_optimizer_states")
"""Not its ``state_dict()``, which reads the scale from the device and leaves out which optimisers are unscaled."""


def memory_of(method: object) -> list[Callable[[], object]]:
    """What gives a method, or a callable that clips, its present state back: part by part, its generators' included.

    Each part may be called as often as is wanted. What remembers nothing has no parts.

    The state of a module is that of ``get_extra_state``, which hands out copies or tensors that are replaced as a
    whole, and its parameters and buffers, which are copied. ``state_dict()`` itself would cost a small step a tenth of
    its time.
    """
    parts = [method]
    restores: list[Callable[[], object]] = []
    if isinstance(method, nn.Module):
        modules = [module for _, module in modules_of(method)]
        parts, restores = [*modules], _memory_of_modules(modules)
    elif offers(method, Remembers):
        restores = [partial(method.load_state_dict, method.state_dict())]
    # A wrapper shows the generator of what it wraps.
    drawn = {id(part.generator): part.generator for part in parts if offers(part, Draws)}
    return [*restores, *(partial(generator.set_state, generator.get_state()) for generator in drawn.values())]


def _memory_of_modules(modules: Sequence[nn.Module]) -> list[Callable[[], object]]:
    extra = [
        partial(module.set_extra_state, module.get_extra_state())
        for module in modules
        if type(module).get_extra_state is not nn.Module.get_extra_state
    ]
    owners = [owner for module in modules for owner in (module._parameters, module._buffers)]
    return [*extra, Contents(owners).restore]


@contextmanager
def guarded(problem: Problem, optimizer: Any, method: object, options: StepOptions) -> Iterator[Guard]:
    """Undo a step, whatever raised in it. A step within a step is undone by the outer one.

    Args:
        problem: the problem.
        optimizer: the optimiser.
        method: the method that makes the step.
        options: the step's options.

    Raises:
        InvalidInputError: one of the first three is something else, as a class in place of an instance; or the model
            has changed since its problem was made, and it cannot be told what is shared now.
    """
    if not isinstance(problem, Problem):
        raise InvalidInputError(
            f"`problem` must be an mtl_core.Problem, got {type(problem).__name__}. Make one of the model, its losses "
            "and what they share."
        )
    check_method(method)
    refuse_other(optimizer)
    outer = problem.under_way
    # A wrapper's step holds the wrapped method's: its guard was taken first and covers more.
    if outer is not None and _is_running(problem.within):
        yield outer
        return
    # Once more, where an interrupt came before the last step had cleared it.
    problem.end_step()
    guard: Guard | None = None
    try:
        # One walk through the model serves the whole step.
        problem.list_now()
        with in_full_precision(), naming_tasks(problem.tasks):
            guard = Guard(problem, optimizer, method, options)
            # The call that entered this block, past the one that `contextmanager` adds.
            problem.under_way, problem.within = guard, sys._getframe(2)
            try:
                yield guard
            # An interrupt from the keyboard must not leave half a step either.
            except BaseException as error:
                # A block that an interrupt left without its end is closed at some later time, within another step.
                if problem.under_way is guard:
                    guard.undo(error)
                raise
    finally:
        if problem.under_way is guard:
            problem.end_step()


def _is_running(frame: FrameType | None) -> bool:
    """Whether a call is one of those that led here."""
    here: FrameType | None = sys._getframe()
    while here is not None and here is not frame:
        here = here.f_back
    return here is not None
