"""Weights that are computed in every k-th step and reused between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mtl_aggregators.bases.parameters import same_tasks
from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["HeldWeights"]


class HeldWeights:
    """A step count and the weights in use.

    Args:
        name: the argument that sets ``every``, for messages.
        every: compute weights in every ``every``-th step.
        owner: the method, for messages.

    Raises:
        InvalidParameterError: ``every`` is not a whole number of at least 1.
    """

    def __init__(self, name: str, every: int, owner: str) -> None:
        self.every = checks.positive_int(name, every)
        self._owner = owner
        self._steps = 0
        self._held: Vector | None = None

    def get(self, n_tasks: int, compute: Callable[[], Vector]) -> Vector:
        """The weights ``[m]`` of this step.

        Raises:
            InvalidInputError: the number of tasks changed while weights are reused.
        """
        held = self._held
        if held is not None and self._steps % self.every != 0:
            same_tasks(self._owner, len(held), n_tasks)
            self._steps += 1
            # Copies both ways: the caller's array becomes a tensor that the user gets to see.
            return held.copy()
        weights = compute()
        if self.every > 1:
            self._steps += 1
            self._held = weights.copy()
        return weights

    def reset(self) -> None:
        """Forget the weights."""
        self._steps = 0
        self._held = None

    def state(self) -> dict[str, Any]:
        """The count and the weights, as ``torch.save`` takes them."""
        return {"steps": self._steps, "held": None if self._held is None else torch.from_numpy(self._held.copy())}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where the saved one stood."""
        self._steps = int(state["steps"])
        held = state["held"]
        self._held = None if held is None else held.detach().to("cpu", torch.float64).numpy().copy()
