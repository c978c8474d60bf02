"""What a run's objects remember and no checkpoint holds, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtl_benchmarks.engine.forgetting import Unsaved
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.trainer import Trainer

__all__ = ["Forgotten", "gone_on_without", "may_be_lost"]


class Forgotten:
    """Names of what is in no checkpoint, as they are found.

    Args:
        trainer: as it was made.
        earlier: names that the checkpoint has, found by the processes before.

    Attributes:
        names: all that are known.
    """

    def __init__(self, trainer: Trainer, earlier: Sequence[str]) -> None:
        self._unsaved = Unsaved(trainer)
        self.names = list(earlier)

    def beside(self, seen: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """A callback for every step that looks at the first one, and then calls ``seen``."""

        def told(now: Progress) -> None:
            self._unsaved.after_step()
            seen(now)

        return told

    def look(self) -> list[str]:
        """What has not been known, where a checkpoint is written."""
        new = [name for name in self._unsaved.found() if name not in self.names]
        self.names = [*self.names, *new]
        return new


def may_be_lost(names: Sequence[str]) -> str:
    """What is said while nothing is lost yet."""
    return (
        f"{_quoted(names)} changed in the steps and is in no checkpoint: if the run is broken off, its numbers may "
        "become others. Let `state_dict` and `load_state_dict` hold what they depend on, in a wrapper `own_state` and "
        "`load_own_state`"
    )


def gone_on_without(names: Sequence[str]) -> str:
    """What is said, and noted with the run, where something was."""
    return (
        f"went on without what was in {_quoted(names)}, which no checkpoint holds: the numbers may differ from those "
        "of a run that was not broken off"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
