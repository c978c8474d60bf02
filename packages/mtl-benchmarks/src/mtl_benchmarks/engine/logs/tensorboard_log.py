"""A log that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_benchmarks.engine.logs.log import WAY_OUT, Log, refuse_as_folder
from mtl_benchmarks.engine.observers import RunStart
from mtl_benchmarks.storage.files import entries, exists
from mtl_benchmarks.storage.growing import GrowingFiles, content_until
from mtl_core import MissingExtraError

__all__ = ["TensorBoardLog"]


class TensorBoardLog(Log):
    """Event files for TensorBoard in ``log/tensorboard`` of the run's directory.

    Each process that works on a run writes one of its own. Every checkpoint knows how far they had come: a restart
    refuses one that is not as it was written, where TensorBoard itself would show what is before the damage.

    Args:
        every: steps between those that are written.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, *, every: int = 10) -> None:
        super().__init__(every=every)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("logging to TensorBoard", "mtl-benchmarks[tensorboard]") from None
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._files: GrowingFiles | None = None

    def ready(self, directory: Path) -> None:
        """Look at the folder of the event files, too."""
        super().ready(directory)
        refuse_as_folder(directory / "log" / "tensorboard")

    def state_dict(self) -> Mapping[str, Any]:
        """How far the event files have come, and the digest of that much."""
        if self._files is None:
            return {}
        self._writer.flush()
        return self._files.until_now(_event_files(self._files.folder))

    def look_back(self, directory: Path, state: Mapping[str, Any] | None) -> str:
        """Hold the event files against what the checkpoint has of them.

        Raises:
            DamagedFileError: one is not what was written.
        """
        folder = directory / "log" / "tensorboard"
        gone = []
        for name, known in (state or {}).items():
            if exists(folder / name):
                content_until(folder / name, known, WAY_OUT)
            else:
                gone.append(name)
        return f"log/tensorboard has no {', '.join(gone)} any more, and goes on without" if gone else ""

    def start(self, run: RunStart) -> None:
        """Open an event file; what lies behind a restart is purged."""
        folder = run.directory / "log" / "tensorboard"
        self._writer = self._make(str(folder), purge_step=run.step + 1 if run.step else None)
        self._files = GrowingFiles(folder)

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self) -> None:
        """Write what is held back."""
        self._writer.close()

    def broken_off(self) -> None:
        """Write what is held back, which may be that of minutes."""
        if self._writer is not None:
            self._writer.close()


def _event_files(folder: Path) -> list[str]:
    return [name for name in entries(folder) if ".tfevents." in name]
