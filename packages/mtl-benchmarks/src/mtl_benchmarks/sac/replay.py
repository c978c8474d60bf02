"""What was experienced, kept to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtl_core import InvalidInputError
from mtl_core.checks import positive_int

__all__ = ["Replay", "Transitions"]


@dataclass(frozen=True)
class Transitions:
    """Some transitions.

    Attributes:
        observations: ``[n, o]``.
        actions: ``[n, a]``.
        rewards: ``[n]``, scaled.
        following: ``[n, o]``, the observations one step later.
        tasks: ``[n]`` int64, numbers of the tasks.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    following: Tensor
    tasks: Tensor

    def to(self, device: str) -> Transitions:
        """The same on another device."""
        return Transitions(*(value.to(device) for value in vars(self).values()))


class Replay:
    """The last transitions of all tasks; the oldest make room for new ones.

    Args:
        capacity: how many, at most.
        observations: numbers per observation.
        actions: numbers per action.

    Example:
        >>> replay = Replay(3, 1, 1)
        >>> for reward in range(4):
        ...     one = torch.full((1,), float(reward))
        ...     replay.add(Transitions(one[None], one[None], one, one[None], torch.tensor([0])))
        >>> len(replay), sorted(replay.draw(50, torch.Generator()).rewards.unique().tolist())
        (3, [1.0, 2.0, 3.0])
    """

    def __init__(self, capacity: int, observations: int, actions: int) -> None:
        self.capacity = positive_int("capacity", capacity)
        # Pages that are not written yet take no memory.
        self._kept = Transitions(
            torch.empty(capacity, observations),
            torch.empty(capacity, actions),
            torch.empty(capacity),
            torch.empty(capacity, observations),
            torch.empty(capacity, dtype=torch.int64),
        )
        self._next = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, new: Transitions) -> None:
        """Keep some transitions, no more than there is room for in all."""
        n = len(new.rewards)
        if n > self.capacity:
            raise InvalidInputError(f"`new` must be at most {self.capacity} transitions, got {n}. Raise `capacity`.")
        # A ring: what is added last takes the places of the oldest.
        rows = (self._next + torch.arange(n)) % self.capacity
        for name, value in vars(new).items():
            getattr(self._kept, name)[rows] = value
        self._next = (self._next + n) % self.capacity
        self._size = min(self._size + n, self.capacity)

    def draw(self, n: int, generator: torch.Generator) -> Transitions:
        """``n`` transitions, each any of those that are kept with the same probability.

        Raises:
            InvalidInputError: there is none.
        """
        if not self._size:
            raise InvalidInputError("`draw` must come after `add`, got no transition to draw from.")
        rows = torch.randint(self._size, (n,), generator=generator)
        return Transitions(*(value[rows] for value in vars(self._kept).values()))

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and where the next one goes."""
        # What is filled only: a checkpoint early in a run is small.
        return {"next": self._next, **{name: value[: self._size].clone() for name, value in vars(self._kept).items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._next, self._size = int(state["next"]), len(state["rewards"])
        for name, value in vars(self._kept).items():
            value[: self._size] = state[name]
