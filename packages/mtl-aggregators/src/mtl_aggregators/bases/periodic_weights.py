"""Weights that are computed in every k-th step and reused between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
        self._known: NDArray[np.bool_] | None = None

    def get(self, gramian: Vector, compute: Callable[[], Vector]) -> Vector:
        """The weights ``[m]`` of this step: held ones while every task with a gradient had one when they were computed.

        Args:
            gramian: of this step, ``[m, m]``.
            compute: new weights.

        Raises:
            InvalidInputError: the number of tasks changed while weights are reused.
        """
        if self.every == 1:
            return compute()
        present = gramian.diagonal() > 0.0
        held, known = self._held, self._known
        if held is not None and known is not None and self._steps % self.every != 0:
            same_tasks(self._owner, len(held), len(gramian))
            if not bool((present & ~known).any()):
                self._steps += 1
                # Copies both ways: the caller's array becomes a tensor that the user gets to see.
                return held.copy()
            # A task that was absent has no weight, and would stand still for all the others' turns.
            self._steps = 0
        weights = compute()
        self._steps += 1
        self._held, self._known = weights.copy(), present
        return weights

    def reset(self) -> None:
        """Forget the weights."""
        self._steps = 0
        self._held = self._known = None

    def state(self) -> dict[str, Any]:
        """The count and the weights, as ``torch.save`` takes them."""
        held, known = (None if each is None else torch.from_numpy(each.copy()) for each in (self._held, self._known))
        return {"steps": self._steps, "held": held, "known": known}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where the saved one stood."""
        self._steps = int(state["steps"])
        held, known = state["held"], state["known"]
        self._held = None if held is None else held.detach().to("cpu", torch.float64).numpy().copy()
        self._known = None if known is None else known.detach().cpu().numpy().copy()
