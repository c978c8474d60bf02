r"""What teleports may cost: passes through the model, counted, beside those that training makes anyway.

The unit is an evaluation of the losses of one batch. A pass back through it counts as two, one whose gradients are
differentiated again as seven (with what that second derivative costs), which is what they were measured to take at
most: 2.1 and 9.3, with the pass back through the second derivative. Nothing is timed, so that the count is the same on
every rank and in a run that resumes.
"""

from __future__ import annotations

import math
from typing import Any

from mtl_core import Method, checks
from mtl_core.extension import is_loss_weighting, offers

__all__ = ["Budget", "change_passes", "gradients_passes", "look_passes", "passes", "step_passes"]

_BACKWARD = 2
_SECOND = 5  # what a differentiation costs more where it is to be differentiated again


def passes(forwards: int, backwards: int, seconds: int = 0) -> int:
    """Passes in units of an evaluation.

    Args:
        forwards: evaluations.
        backwards: differentiations.
        seconds: those of them whose gradients are differentiated again.

    Example:
        >>> passes(1, 1), passes(1, 3, 1)
        (3, 12)
    """
    return forwards + _BACKWARD * backwards + _SECOND * seconds


def gradients_passes(n_tasks: int) -> int:
    """The gradients of all tasks on one batch."""
    return passes(1, n_tasks)


def change_passes(n_batches: int) -> int:
    """The combined gradient on every probe batch, before a move and after it."""
    return 2 * n_batches * passes(1, 1)


def step_passes(method: Any, n_tasks: int) -> int:
    """What a training step counts as: rather too little than too much.

    A method on gradients makes a pass back per task. It counts as one here and not as two, since much of the model may
    be in heads, through which only their own task goes.

    Args:
        method: the wrapped method.
        n_tasks: number of tasks m.
    """
    least = passes(1, 1)
    if is_loss_weighting(method) or offers(method, Method):
        return least
    return max(least, 1 + n_tasks)


def look_passes(method: Any, n_tasks: int) -> int:
    """What the trigger's look at the gradients of all tasks adds to a step.

    Args:
        method: the wrapped method.
        n_tasks: number of tasks m.
    """
    if offers(method, Method):
        return gradients_passes(n_tasks)  # it makes its whole step by itself afterwards
    return _BACKWARD * (n_tasks - 1) if is_loss_weighting(method) else 0


class Budget:
    """How much teleports may cost, as a share of the passes of all training steps so far.

    Args:
        share: of those passes; ``None`` for no limit.

    Attributes:
        earned: passes of the training steps so far.
        spent: passes that looks and teleports have added to them.

    Raises:
        InvalidParameterError: the share is not a positive number.

    Example:
        >>> budget = Budget(0.5)
        >>> budget.earn(30)
        >>> budget.spend(10)
        >>> budget.left
        5.0
    """

    def __init__(self, share: float | None) -> None:
        self.share = None if share is None else checks.positive("budget", share)
        self.earned = 0
        self.spent = 0

    @property
    def left(self) -> float:
        """What may be spent now; without a limit, infinity."""
        return math.inf if self.share is None else self.share * self.earned - self.spent

    def earn(self, amount: int) -> None:
        """Count a training step."""
        self.earned += amount

    def spend(self, amount: int) -> None:
        """Count what was added to one."""
        self.spent += amount

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"earned": self.earned, "spent": self.spent}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the counts of ``state_dict``."""
        self.earned, self.spent = int(state["earned"]), int(state["spent"])
