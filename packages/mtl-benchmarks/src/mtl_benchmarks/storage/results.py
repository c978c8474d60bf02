"""One directory per run: what is in it, whose it is, and whether it still is what was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from mtl_benchmarks.storage.checkpoint import Checkpoint, Checkpoints, config_digest
from mtl_benchmarks.storage.differing import differing
from mtl_benchmarks.storage.files import (
    damaged,
    digest_of,
    exists,
    make_directory,
    parsed,
    read,
    remove,
    remove_parts,
    sealed,
    unsealed,
    write_atomically,
)
from mtl_benchmarks.storage.lock import locked
from mtl_benchmarks.storage.marker import LOCK, MARKER, Kind, kind_of, marker, refuse_kind
from mtl_benchmarks.storage.result_entries import refuse_other_entries
from mtl_benchmarks.storage.run_tables import RunTables
from mtl_benchmarks.storage.tables import TABLES
from mtl_core import DamagedFileError, ResultsDirectoryError

__all__ = ["Collection", "RunDirectory"]


class Collection:
    """A directory of runs.

    Args:
        path: it is made if it does not exist.

    Raises:
        ResultsDirectoryError: ``path`` is not empty and not a collection, or cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not refuse_kind(self.path, "collection") or not exists(self.path / MARKER):
            make_directory(self.path)
            write_atomically(self.path / MARKER, marker("collection"))

    def run_path(self, name: str) -> Path:
        """Where the run of that name lives; what a file's name cannot hold is replaced."""
        return self.path_in(self.path, name)

    @staticmethod
    def path_in(path: str | Path, name: str) -> Path:
        """The same in a collection that need not exist."""
        return Path(path) / re.sub(r"[^\w.+=,@-]", "_", name)


class RunDirectory(RunTables):
    """The files of one run.

    ==========================  ====================================================================================
    ``mtl-bench.json``          marker with the format version
    ``mtl-bench.lock``          empty; a process that works on the run holds it
    ``config.json``             the resolved configuration
    ``environment.json``        the sessions that worked on the run: versions, hardware, from where to where
    ``metrics.csv``             epoch, step, split, task, metric, unit, higher_is_better, value
    ``times.csv``               epoch, step, part, seconds: what the time since the evaluation before was spent on
    ``steps.csv``               step, task, loss, weight, norm, of a thinned series of steps
    ``cosines.csv``             epoch, step, task, other task, cosine of their gradients, of a thinned series
    ``gradients.csv``           step, task, cosine with the update, inner product with each task's gradient, of a
                                thinned series of steps; where there are gradients of several tasks
    ``events.jsonl``            one object per teleport: epoch, step and what the method reported
    ``trace.csv``               one row per step, where the benchmark records a path
    ``checkpoint.pt``           everything a restart needs; the other tables are written from it
    ``checkpoint.previous.pt``  the checkpoint before that
    ``stopped.json``            why the run stopped, if its state became NaN or infinite
    ``result.json``             the reported values, with digests of the tables; present when the run is complete
    ``figures/``                whatever was drawn
    ==========================  ====================================================================================

    Args:
        path: of the run. Nothing is looked at or written yet; see :meth:`existing` and :meth:`working`.

    Raises:
        ResultsDirectoryError: by methods, where the directory or a file in it is not what it is to be.
    """

    kind: ClassVar[Kind] = "run"

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A run's directory as it stands, for reading.

        Raises:
            ResultsDirectoryError: there is no run.
        """
        directory = cls(path)
        if kind_of(directory.path) != cls.kind:
            raise ResultsDirectoryError(f"`directory` must hold a run, got {str(path)!r}, which does not.")
        if not exists(directory.config_file):
            raise ResultsDirectoryError(
                f"`directory` must hold a run that began, got {str(path)!r} without config.json. Start it again."
            )
        return directory

    @contextmanager
    def working(self, config: Mapping[str, Any]) -> Iterator[str | None]:
        """Work on the run as the only process that does; before it is certain of that, nothing is touched.

        Args:
            config: the resolved configuration of the run that wants to write here.

        Yields:
            None, or why other processes cannot be kept out here.

        Raises:
            ResultsDirectoryError: another process works on it, or the directory is not empty and not this run's.
        """
        # Twice: first without a trace, since another run's directory is not even to get a lock file, and once more when
        # nobody else can change it.
        self.refuse_other(config)
        make_directory(self.path)
        with locked(self.path / LOCK) as unlocked:
            if not self.refuse_other(config):
                write_atomically(self.path / MARKER, marker(self.kind))
            remove_parts(self.path)
            if not exists(self.config_file):
                # A run that was killed before it wrote this has neither; another one's are found by their digests.
                self.checkpoints.read(config)
                with suppress(DamagedFileError):  # what becomes of that one is for who goes on with the run to say
                    self.read_result(config)
                write_atomically(self.config_file, json.dumps(config, indent=2) + "\n")
            yield unlocked

    def refuse_other(self, config: Mapping[str, Any]) -> bool:
        """Refuse a directory that is not of the run with this configuration; whether it is one already.

        It is none yet without a config.json, which is then written, under the lock.
        """
        if begun := refuse_kind(self.path, self.kind) and exists(self.config_file):
            # As JSON would give it back: tuples and lists are the same there.
            changed = differing(self.read_config(), json.loads(json.dumps(config)))
            if changed:
                raise ResultsDirectoryError(
                    f"`directory` {str(self.path)!r} must belong to the same configuration, got a run whose "
                    f"config.json has {changed}. Choose another directory, or the options of the run that is there."
                    f"{self._edited(config)}"
                )
        return begun

    def _edited(self, config: Mapping[str, Any]) -> str:
        """What else to do where the checkpoint says that config.json is not what was written."""
        try:
            found = self.checkpoints.read(config)
        except ResultsDirectoryError:
            return ""
        if found is None:
            return ""
        return " The checkpoint beside it is of the options given here: if config.json was changed, remove it."

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Checkpoints:
        """Where a restart begins."""
        return Checkpoints(self.path)

    @property
    def result_file(self) -> Path:
        """Present when the run is complete."""
        return self.path / "result.json"

    @property
    def stopped_file(self) -> Path:
        """Present when the run stopped because its state became NaN or infinite."""
        return self.path / "stopped.json"

    @property
    def figures(self) -> Path:
        """Folder of the figures; made on first use."""
        folder = self.path / "figures"
        make_directory(folder)
        return folder

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run that lives here.

        Raises:
            DamagedFileError: it is not what was written, as far as that can be told without the run.
        """
        content = read(self.config_file)
        try:
            return dict(parsed(content))
        except (ValueError, TypeError) as error:
            raise damaged(
                self.config_file,
                f"{len(content)} bytes that cannot be read ({type(error).__name__})",
                "Remove it and give the command of this run again: it is written again if checkpoint and result are of "
                "the same configuration.",
            ) from None

    def read_checkpoint(self) -> Checkpoint | None:
        """Where the run that lives here stands, or None before its first checkpoint.

        Raises:
            DamagedFileError: it is damaged.
            ResultsDirectoryError: it is of another configuration.
        """
        return self.checkpoints.read(self.read_config())

    def write_table(self, name: str, content: bytes, *, durable: bool = False) -> None:
        """Replace a table."""
        write_atomically(self.path / name, content, durable=durable)

    def read_tables(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        """The tables of a complete run, each with the digest that the result has of it.

        Raises:
            DamagedFileError: one is missing, not as it was written, or too many.
        """
        found = {}
        for name, digest in result["tables"].items():
            path = self.path / name
            if not exists(path):
                raise damaged(path, "no file")
            found[name] = read(path)
            if digest_of(found[name]) != digest:
                raise damaged(path, "content with another digest than result.json has of it")
        # A table that the result does not know, such as the path of another run, would be read along with it.
        for name in TABLES:
            if name not in found and exists(self.path / name):
                raise damaged(self.path / name, "a file that this run has not written", "Move it away.")
        return found

    def refuse_other_checkpoint(self, result: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that is not that of the end of the complete run; that there is none does not matter.

        Only the digest that stands in it is read: it may be large, and the result does not need it.
        """
        found = self.checkpoints.seal()
        if found not in (None, result["checkpoint"]):
            raise ResultsDirectoryError(
                f"`{self.checkpoints.newest.name}` in {str(self.path)!r} must be that of the end of this run, got "
                "another one. Put back the file that belongs here, or move this one away: the result does not need it."
            )

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run complete."""
        write_atomically(self.result_file, sealed(result, self.result_file))

    def read_result(self, config: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The result of a complete run, or None.

        Args:
            config: of the run that it must be of; None: what config.json has.

        Raises:
            DamagedFileError: it is not what was written.
            ResultsDirectoryError: it is of another configuration, or of another version.
        """
        if not exists(self.result_file):
            return None
        result = unsealed(read(self.result_file), self.result_file)
        refuse_other_entries(result, self.result_file)
        if config is None and result["config"] != config_digest(self.read_config()):
            raise ResultsDirectoryError(
                f"`config.json` and `result.json` in {str(self.path)!r} must belong together, got a result of another "
                "configuration. Put back the file that belongs here."
            )
        if config is not None and result["config"] != config_digest(config):
            raise ResultsDirectoryError(
                f"`result.json` in {str(self.path)!r} must belong to the configuration of this run, got a result of "
                "another one. Put back the file that belongs here, or choose another directory."
            )
        return result

    def write_stopped(self, what: Mapping[str, Any]) -> None:
        """Keep why the run stopped."""
        write_atomically(self.stopped_file, sealed(what, self.stopped_file))

    def read_stopped(self) -> str | None:
        """Why the run stopped before, or None."""
        if not exists(self.stopped_file):
            return None
        try:
            return str(unsealed(read(self.stopped_file), self.stopped_file)["what"])
        except DamagedFileError as error:
            return f"for a reason that cannot be read: {error}"

    def forget_stopped(self) -> None:
        """The run has got past where it stopped."""
        remove(self.stopped_file)
