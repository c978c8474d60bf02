"""How large a search is that a budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mtl_teleport.budget import change_passes, gradients_passes, passes
from mtl_teleport.history import HTR
from mtl_teleport.search import SearchKind
from mtl_teleport.sharpness import Sharpness

__all__ = ["LEAST_BATCHES", "STRIDE", "Prices"]

LEAST_STEPS = 3
"""Of fewer, one or two of which are left again for their drift, nothing was seen to come."""

LEAST_BATCHES = 2
"""Losses that are held on one batch hold on that batch only; two cost hardly more."""

STRIDE = 2.0
"""Of few steps the first is longer: at 32 states of digits (seeds 0 to 3) up to 108 passes came to a median cosine of
0.23 with twice the length, 0.19 with the plain one and 0.18 with three times it; without a limit it was 0.24."""

_LAST_LOOK = 1


@dataclass(frozen=True)
class Prices:
    """What the parts of a teleport cost at most, in passes.

    Attributes:
        step: a step of the adapter.
        batch: a probe batch, whatever the number of steps.
        inside: of these, what the search itself makes of it before it ends, and again after.
        after: the gradients at the new point, or once more at the old one.
        rounds: passes of a search over its batches.
    """

    step: int
    batch: int
    inside: int
    after: int
    rounds: int

    @classmethod
    def of(
        cls,
        n_tasks: int,
        *,
        sharpness: Sharpness,
        search: SearchKind,
        has_conflict_term: bool,
        htr: HTR,
        rounds: int,
    ) -> Prices:
        """The prices of a setting.

        Args:
            n_tasks: number of tasks m.
            sharpness: what is climbed.
            search: how.
            has_conflict_term: whether the conflict itself is part of the objective.
            htr: what becomes of the optimiser's memory.
            rounds: passes of a search over its batches.
        """
        step = 1 + sharpness.passes
        if search == "projected":
            step += passes(0, n_tasks)
        if has_conflict_term:
            step += passes(0, n_tasks + 1, n_tasks)
        # Its losses before, and one look at those after.
        batch = 2
        if htr == "transported":
            batch += change_passes(1)
        inside = 1 + sharpness.passes if sharpness.is_judge else 0
        return cls(step, batch + 2 * inside, inside, gradients_passes(n_tasks), rounds)

    @property
    def fixed(self) -> int:
        """Whatever the numbers of steps and batches."""
        return _LAST_LOOK + self.after

    def search(self, left: float, n_batches: int) -> int:
        """What the search itself may take up to its end.

        Args:
            left: what may be spent but for ``after``; finite.
            n_batches: probe batches that it is held on.
        """
        return math.floor(left) - n_batches * (self.batch - self.inside)

    def least(self, n_batches: int) -> int:
        """What the smallest teleport costs that is worth beginning."""
        return self.fixed + n_batches * self.batch + LEAST_STEPS * self.step

    def batches(self, left: float) -> int:
        """On how many batches to hold the losses: as many as the steps that can be paid go round in ``rounds``.

        Args:
            left: what may be spent; finite.
        """
        steps = math.floor((left - self.fixed - LEAST_BATCHES * self.batch) / self.step)
        wanted = max(LEAST_BATCHES, math.ceil(steps / self.rounds))
        # More batches must not take the place of the steps that they are for.
        paid = math.floor((left - self.fixed - LEAST_STEPS * self.step) / self.batch)
        return max(1, min(wanted, paid))
