"""When a teleport may happen at all: a delayed start and a number per epoch."""

from __future__ import annotations

from mtl_core import InvalidInputError, InvalidParameterError, checks

__all__ = ["Schedule"]


class Schedule:
    """Counts steps, epochs and teleports.

    Args:
        start_after: epochs without a teleport at the start (the released runs use 50 of 200).
        max_per_epoch: teleports per epoch, those rolled back included; ``None`` for no limit.
        steps_per_epoch: lets the schedule tell epochs by itself; otherwise ``start_epoch`` must be called.

    Raises:
        InvalidParameterError: a count is negative, or not a whole number.
    """

    def __init__(
        self, *, start_after: int = 0, max_per_epoch: int | None = 1, steps_per_epoch: int | None = None
    ) -> None:
        if isinstance(start_after, bool) or not isinstance(start_after, int) or start_after < 0:
            raise InvalidParameterError(
                f"`start_after` must be a whole number of epochs, 0 or more, got {start_after!r}."
            )
        self.start_after = start_after
        self.max_per_epoch = None if max_per_epoch is None else checks.positive_int("max_per_epoch", max_per_epoch)
        self.steps_per_epoch = (
            None if steps_per_epoch is None else checks.positive_int("steps_per_epoch", steps_per_epoch)
        )
        self.epoch: int | None = None
        self.steps = 0
        self._steps_in_epoch = 0
        self._used = 0

    def start_epoch(self, epoch: int) -> None:
        """Begin an epoch; naming the present one again changes nothing."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise InvalidInputError(f"`epoch` must be a whole number, 0 or more, got {epoch!r}.")
        # A run that resumes within an epoch tells it again, which must not allow it more moves.
        if epoch != self.epoch:
            self.epoch, self._steps_in_epoch, self._used = epoch, 0, 0

    def begin_step(self) -> int | None:
        """Count a step; returns the epoch that starts with it, if the schedule itself found one to start.

        Raises:
            InvalidInputError: a limit counts epochs and no one has told of any.
        """
        started: int | None = None
        if self.steps_per_epoch is not None and (self.epoch is None or self._steps_in_epoch >= self.steps_per_epoch):
            started = 0 if self.epoch is None else self.epoch + 1
            self.start_epoch(started)
        if self.epoch is None and (self.start_after > 0 or self.max_per_epoch is not None):
            raise InvalidInputError(
                f"the limits start_after={self.start_after} and max_per_epoch={self.max_per_epoch} count epochs, "
                "got none so far. "
                "Call cost.start_epoch(epoch) at the start of every epoch, or pass steps_per_epoch=; "
                "start_after=0 with max_per_epoch=None needs neither."
            )
        self.steps += 1
        self._steps_in_epoch += 1
        return started

    @property
    def is_open(self) -> bool:
        """Whether a teleport may happen in the present step."""
        started = self.start_after == 0 or (self.epoch is not None and self.epoch >= self.start_after)
        return started and (self.max_per_epoch is None or self._used < self.max_per_epoch)

    def record(self) -> None:
        """Count a teleport."""
        self._used += 1

    def state_dict(self) -> dict[str, int | None]:
        """The counters."""
        return {"epoch": self.epoch, "steps": self.steps, "steps_in_epoch": self._steps_in_epoch, "used": self._used}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue from the counters of ``state_dict``."""
        self.epoch = state["epoch"]
        self.steps = int(state["steps"] or 0)
        self._steps_in_epoch = int(state["steps_in_epoch"] or 0)
        self._used = int(state["used"] or 0)
