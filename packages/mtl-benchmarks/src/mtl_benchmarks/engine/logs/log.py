"""What the logs of a run have in common: names for all that is seen, and where it may be written."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from mtl_benchmarks.engine.observers import EvaluationSeen, Observer, StepSeen
from mtl_core import ResultsDirectoryError
from mtl_core.checks import positive_int

__all__ = ["WAY_OUT", "Log", "refuse_as_file", "refuse_as_folder"]


WAY_OUT = "Move it away, and a new one begins here; or leave out `log`. The run itself does not need it."
"""What to do with a file of a log that cannot be gone on with."""


class Log(Observer):
    """Names for everything that is seen, and which steps are written.

    Args:
        every: steps between those that are written; evaluations are written always.
    """

    def __init__(self, *, every: int = 10) -> None:
        self._every = positive_int("every", every)

    def step(self, seen: StepSeen) -> None:
        """Losses, weights and norms of every tenth step or so."""
        if seen.step % self._every == 0 or seen.step == 1:
            parts = (("loss", seen.losses), ("weight", seen.weights), ("norm", seen.norms))
            values = {f"step/{kind}/{task}": value for kind, found in parts for task, value in found.items()}
            self.write(seen.step, seen.epoch + 1, values)

    def evaluation(self, seen: EvaluationSeen) -> None:
        """Metrics, means since the last evaluation, and where the time went."""
        values = {f"{split}/{name}": value for split, found in seen.values.items() for name, value in found.items()}
        values |= {f"seconds/{part}": value for part, value in seen.seconds.items()}
        self.write(seen.step, seen.epoch, values)

    def ready(self, directory: Path) -> None:
        """Look at the folder ``log``, in which everything is written.

        Raises:
            ResultsDirectoryError: something else has its name, or it cannot be written to.
        """
        refuse_as_folder(directory / "log")

    @abstractmethod
    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write values by name."""


def refuse_as_folder(path: Path) -> None:
    """Refuse what cannot be made a folder, or be written into."""
    if os.path.lexists(path) and not path.is_dir():
        raise ResultsDirectoryError(
            f"`log` must be written in a folder, got {str(path)!r}, which is none. Move it away, or leave out `log`."
        )
    _refuse_unwritable(path)


def refuse_as_file(path: Path) -> None:
    """Refuse what is no file, or cannot be written."""
    if os.path.lexists(path) and not path.is_file():
        raise ResultsDirectoryError(
            f"`log` must be written in a file, got {str(path)!r}, which is none. Move it away, or leave out `log`."
        )
    _refuse_unwritable(path)


def _refuse_unwritable(path: Path) -> None:
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise ResultsDirectoryError(
            f"`log` must be writable, got {str(path)!r}, which is not. Make it so, or leave out `log`."
        )
