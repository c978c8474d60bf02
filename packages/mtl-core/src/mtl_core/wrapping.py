"""One hand-on for methods that wrap another: whatever the wrapped one offers, it goes on offering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtl_core.errors import InvalidInputError
from mtl_core.protocols import (
    CountsEpochs,
    Draws,
    HasMemory,
    LearnsAfterStep,
    Remembers,
    ReportsEvents,
    Resets,
    check_method,
    offers,
)
from mtl_core.report import Event
from mtl_core.saved_state import SavedState

__all__ = ["Wrapper"]


class Wrapper(SavedState):
    """Base of the methods that wrap another method, of whatever kind.

    Epochs, resets, events, what is learnt after a step, and the state go on to the wrapped method, module or not. A
    subclass adds what it remembers itself by ``own_state`` and ``load_own_state``; it must not define the state's other
    methods, or the wrapped method's state would be lost in it.

    Args:
        method: what is wrapped.

    Attributes:
        method: what is wrapped.

    Raises:
        InvalidInputError: it is no method, or the class of one.
    """

    method: Any

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = check_method(method)

    def own_state(self) -> dict[str, Any]:
        """What the wrapper itself remembers; values that later steps do not change."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from ``own_state``."""

    def start_epoch(self, epoch: int, /) -> None:
        """Tell the wrapped method that an epoch begins, counted from 0."""
        if offers(self.method, CountsEpochs):
            self.method.start_epoch(epoch)

    def reset(self) -> None:
        """Let the wrapped method forget what it has learnt."""
        if offers(self.method, Resets):
            self.method.reset()

    def pop_events(self) -> tuple[Event, ...]:
        """The wrapped method's events since the last call."""
        return tuple(self.method.pop_events()) if offers(self.method, ReportsEvents) else ()

    def after_step(self, before: Tensor, after: Callable[[], Tensor], /) -> None:
        """Show the wrapped method what the update did to the losses."""
        if offers(self.method, LearnsAfterStep):
            self.method.after_step(before, after)

    def _described(self) -> str:
        return f"{type(self).__name__} around a {type(self.method).__name__}"

    def get_extra_state(self) -> dict[str, Any]:
        """The wrapper's own state, and that of a wrapped method which is no module; a module's is in its own entry."""
        held: dict[str, Any] = {"own": self.own_state()}
        # As a submodule it is in state_dict() by itself; saved here as well, it would be loaded twice.
        if not isinstance(self.method, nn.Module):
            if offers(self.method, Remembers):
                held["method"] = self.method.state_dict()
            elif offers(self.method, Draws):
                held["generator"] = self.method.generator.get_state()
        return held

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            InvalidInputError: it has another form, or holds the state of a method that the wrapped one cannot take.
        """
        if not isinstance(state, dict) or "own" not in state:
            raise InvalidInputError(
                f"`state` must be what state_dict() of a {type(self).__name__} returned, got "
                f"{sorted(state) if isinstance(state, dict) else type(state).__name__}."
            )
        if set(state["own"]) != set(self.own_state()):
            raise InvalidInputError(
                f"`state` must hold {sorted(self.own_state())} of a {type(self).__name__}, got {sorted(state['own'])}. "
                "Give what state_dict() returned."
            )
        if "generator" in state and not offers(self.method, Draws):
            raise InvalidInputError(
                f"`state` must fit the wrapped method, got a generator's state for {type(self.method).__name__}, which "
                "draws nothing. Wrap the method it was saved with."
            )
        if "method" in state:
            if isinstance(self.method, nn.Module) or not offers(self.method, Remembers):
                raise InvalidInputError(
                    f"`state` must fit the wrapped method, got a state for {type(self.method).__name__}, which takes "
                    "none. Wrap the method it was saved with."
                )
            self.method.load_state_dict(state["method"])
        if "generator" in state and offers(self.method, Draws):
            # A checkpoint that was loaded onto a device brings this along, and torch takes the state of any generator
            # on the CPU.
            self.method.generator.set_state(state["generator"].cpu())
        self.load_own_state(state["own"])

    @property
    def has_memory(self) -> bool:
        """Whether the wrapped method's result depends on earlier steps."""
        return offers(self.method, HasMemory) and self.method.has_memory

    @property
    def generator(self) -> torch.Generator | None:
        """Where the wrapped method draws its random numbers from; ``None`` if it draws none."""
        return self.method.generator if offers(self.method, Draws) else None
