"""Observers that write what they see: CSV files, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_benchmarks.engine.observers import EvaluationSeen, Observer, RunStart, StepSeen
from mtl_benchmarks.storage.files import entries, exists, write_atomically
from mtl_benchmarks.storage.growing import GrowingFiles, content_until
from mtl_core import InvalidParameterError, MissingExtraError, ResultsDirectoryError
from mtl_core.checks import one_of, positive_int

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["LOGS", "CSVLog", "Log", "TensorBoardLog", "WandBLog", "make_logs"]


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
        _refuse_as_folder(directory / "log")

    @abstractmethod
    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write values by name."""


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
        _refuse_as_file(directory / "log" / "log.csv")

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
        self._kept = content_until(path, state["log.csv"], _WAY_OUT)
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


_HEADER = b"step,epoch,name,value\n"

_WAY_OUT = "Move it away, and a new one begins here; or leave out `log`. The run itself does not need it."


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
        _refuse_as_folder(directory / "log" / "tensorboard")

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
                content_until(folder / name, known, _WAY_OUT)
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


class WandBLog(Log):
    """A run of Weights & Biases, its files in ``log`` of the run's directory.

    Whether it is sent anywhere is for wandb's own settings to say (``WANDB_MODE=offline``, ``wandb login``).

    Args:
        every: steps between those that are written.
        project: the name of the project there.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, *, every: int = 10, project: str = "mtl-bench") -> None:
        super().__init__(every=every)
        try:
            import wandb

            # A folder of that name, as wandb makes one where it is started, is imported as an empty package.
            wandb.login  # noqa: B018
        except (ImportError, AttributeError):
            raise MissingExtraError("logging to Weights & Biases", "mtl-benchmarks[wandb]") from None
        self._wandb: Any = wandb
        self._project = project
        self._run: Any = None

    def ready(self, directory: Path) -> None:
        """Look whether there is a key, unless the mode is one that sends nothing; at a terminal wandb asks for one.

        Raises:
            InvalidParameterError: there is none, or one that wandb does not take.
        """
        super().ready(directory)
        _refuse_as_folder(directory / "log" / "wandb")
        if self._wandb.setup().settings.mode in _SENDS_NOTHING:
            return
        try:
            self._wandb.login()
        except (self._wandb.Error, ValueError, TimeoutError) as error:
            raise InvalidParameterError(
                f"`log` wandb must have a key of Weights & Biases, got none that it takes ({error}). Give it by `wandb "
                "login` or WANDB_API_KEY, or keep the log on this machine with WANDB_MODE=offline."
            ) from error

    def start(self, run: RunStart) -> None:
        """Begin a run there, under the name of ours."""
        folder = run.directory / "log"
        folder.mkdir(exist_ok=True)
        self._run = self._wandb.init(
            project=self._project,
            name=run.config.name,
            group=run.config.label,
            config=run.config.as_dict(),
            dir=str(folder),
            # Several runs in one process are several runs there.
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """All values of a step together."""
        self._run.log({"epoch": epoch, **values}, step=step)

    def finish(self) -> None:
        """End the run there."""
        self._run.finish()

    def broken_off(self) -> None:
        """End the run there as one that failed."""
        if self._run is not None:
            self._run.finish(exit_code=1)


_SENDS_NOTHING = ("offline", "dryrun", "disabled")
"""Modes of wandb that need no key."""


def _refuse_as_folder(path: Path) -> None:
    """Refuse what cannot be made a folder, or be written into."""
    if os.path.lexists(path) and not path.is_dir():
        raise ResultsDirectoryError(
            f"`log` must be written in a folder, got {str(path)!r}, which is none. Move it away, or leave out `log`."
        )
    _refuse_unwritable(path)


def _refuse_as_file(path: Path) -> None:
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


LOGS: Mapping[str, type[Log]] = {"csv": CSVLog, "tensorboard": TensorBoardLog, "wandb": WandBLog}
"""Names that ``--log`` takes."""


def make_logs(names: Sequence[str]) -> list[Observer]:
    """The observers behind names.

    Raises:
        InvalidParameterError: a name that is none of :data:`LOGS`.
        MissingExtraError: what it writes with is not installed.
    """
    return [LOGS[one_of("log", name, tuple(LOGS))]() for name in dict.fromkeys(names)]
