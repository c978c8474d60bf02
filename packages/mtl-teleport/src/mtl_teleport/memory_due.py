"""The treatment of an optimiser's memory that a move has made due and no update has made yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

from mtl_core import Problem
from mtl_teleport.history import HTR, modulated
from mtl_teleport.transport import Change

__all__ = ["MemoryDue"]

Entry = dict[str, Any]
"""``sigma``: the cosine by which the next update reuses the memory; ``change``: what the move did to the gradient."""


class MemoryDue:
    """What is due, by model: each has a memory of its own, and the next update of its parameters may be steps away."""

    def __init__(self) -> None:
        # By model and not by problem: a view of a problem is another one in every step.
        self._due: WeakKeyDictionary[nn.Module, Entry] = WeakKeyDictionary()
        # Whose each entry was, also when it is due no more: an error may put it back.
        self._owners: WeakKeyDictionary[nn.Module, Entry] = WeakKeyDictionary()
        # From a saved state, which names no model: they are taken in the order in which they were saved.
        self._unowned: list[Entry] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"due": self.state()}  # references to models are not copied or pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.load(state["due"])

    def add(self, model: nn.Module, sigma: float, change: Change | None) -> None:
        """The memory of a model's parameters is due from now on, in place of what was."""
        self._of(model)
        self._due[model] = self._owners[model] = {"sigma": sigma, "change": change}

    @contextmanager
    def paid(self, problem: Problem, optimizer: Optimizer, mode: HTR) -> Iterator[None]:
        """Let the update inside the block reuse the memory as is due; without an update it stays due.

        Args:
            problem: whose shared parameters they are.
            optimizer: the optimiser.
            mode: what becomes of the memory.
        """
        model = problem.model
        entry = self._of(model)
        if entry is None:
            yield
            return
        named, change = problem.named_shared, entry["change"]
        if change is not None:
            # What was frozen at the move has no change to be carried.
            named = {name: parameter for name, parameter in named.items() if name in change}
        changes = None if change is None else [change[name] for name in named]
        with modulated(optimizer, entry["sigma"], named.values(), mode=mode, changes=changes) as reuse:
            yield
        # Not after an error: then the step is undone, and the memory is still due.
        if reuse.is_done:
            del self._due[model]

    def state(self) -> list[Entry]:
        """What is due, as plain data."""
        return [*self._due.values(), *self._unowned]

    def load(self, state: list[Entry]) -> None:
        """Go on from ``state``; what was put into it here goes back to the models that it was of."""
        self._due.clear()
        self._unowned = list(state)
        for model, entry in self._owners.items():
            if any(entry is other for other in self._unowned):
                self._due[model] = entry
                self._unowned = [other for other in self._unowned if other is not entry]

    def _of(self, model: nn.Module) -> Entry | None:
        if self._unowned and model not in self._due:
            self._due[model] = self._owners[model] = self._unowned.pop(0)
        return self._due.get(model)
