"""A log as a table of numbers, one per line."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_benchmarks.engine.logs.log import WAY_OUT, Log, refuse_as_file
from mtl_benchmarks.engine.observers import RunStart
from mtl_benchmarks.storage.files import exists, write_atomically
from mtl_benchmarks.storage.growing import GrowingFiles, content_until
from mtl_core import ResultsDirectoryError

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["CSVLog"]

_HEADER = b"step,epoch,name,value\n"


class CSVLog(Log):
    """``log/log.csv`` in the run's directory: step, epoch, name, value; one line per number.

    Every checkpoint knows how long the file was then, and the digest of that much. A restart takes out what lies
    behind, which comes again, and refuses a file that is not as it was written. Where there is none any more, a new one
    begins with the steps that follow.

    Args:
        every: steps between those that are written.
    """

    def __init__(self, *, every: int = 10) -> None:
        super().__init__(every=every)
        self._file: TextIO | None = None
        self._kept = _HEADER
        self._files: GrowingFiles | None = None

    def ready(self, directory: Path) -> None:
        """Look at the file, too."""
        super().ready(directory)
        refuse_as_file(directory / "log" / "log.csv")

    def state_dict(self) -> Mapping[str, Any]:
        """How far the file has come, and the digest of that much."""
        return {} if self._files is None else self._files.until_now(["log.csv"])

    def look_back(self, directory: Path, state: Mapping[str, Any] | None) -> str:
        """Hold the file against what the checkpoint has of it.

        Raises:
            DamagedFileError: it is not what was written.
            ResultsDirectoryError: no checkpoint knows of it.
        """
        path = directory / "log" / "log.csv"
        if not exists(path):
            return "" if state is None else "log/log.csv is not there any more: a new one begins here"
        if state is None:
            raise ResultsDirectoryError(
                f"`{path.name}` in {str(path.parent)!r} must be of this run, got one that its checkpoint does not "
                "know. Move it away, and a new one begins here; or leave out `log`."
            )
        self._kept = content_until(path, state["log.csv"], WAY_OUT)
        return ""

    def start(self, run: RunStart) -> None:
        """Open the file, without what lies behind the restart."""
        path = run.directory / "log" / "log.csv"
        path.parent.mkdir(exist_ok=True)
        # A run that was killed goes on from a checkpoint before its last lines, and makes them again.
        write_atomically(path, self._kept)  # nothing is lost where this is broken off
        self._files = GrowingFiles(path.parent)
        self._file = path.open("a", encoding="utf-8", newline="")

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One line per value; they are in the file when this returns."""
        assert self._file is not None
        # repr() of a float reads back to the same bits.
        rows = [(step, epoch, name, repr(value)) for name, value in values.items()]
        csv.writer(self._file, lineterminator="\n").writerows(rows)
        self._file.flush()

    def finish(self) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()

    def broken_off(self) -> None:
        """Close the file; all that was seen is in it."""
        if self._file is not None:
            self._file.close()
