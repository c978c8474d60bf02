"""One directory per run: what is in it, and whose it is."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from mtl_core import ResultsDirectoryError

try:
    import fcntl
except ImportError:  # no such locks on this platform
    fcntl = None  # type: ignore[assignment]

__all__ = ["FORMAT", "MARKER", "Collection", "RunDirectory", "environment", "write_atomically"]

FORMAT = 1
"""Version of the layout below. A reader refuses a directory of another version."""

MARKER = "mtl-bench.json"
"""Name of the file that says that a directory is ours, of which kind, and in which format version."""

_TEMPORARY = ".mtl-bench-"
Kind = Literal["run", "collection"]


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new one and never a part.

    The content goes to a temporary file in the same directory, which is then renamed over ``path``.

    Args:
        path: the file.
        content: what it is to hold.
        durable: flush to the disk before renaming, so that not even a power failure leaves a part. Tables can be
            written again from the checkpoint and do without.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def environment() -> dict[str, Any]:
    """Versions and hardware of this process, for the record."""
    packages = ("torch", "numpy", "scipy", "mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": versions,
        "torch_version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        marker = json.loads((path / MARKER).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsDirectoryError(
            f"`directory` {str(path)!r} must hold a readable {MARKER}, got {error}. Choose another directory."
        ) from None
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        found = marker.get("format") if isinstance(marker, dict) else marker
        raise ResultsDirectoryError(
            f"`directory` {str(path)!r} must have format {FORMAT}, got {found!r}. Choose another directory, or read "
            "it with the version of mtl-benchmarks that wrote it."
        )
    return marker


def _claim(path: Path, kind: Kind) -> None:
    """Make ``path`` a directory of ours, or make sure that it is one.

    Raises:
        ResultsDirectoryError: it is a file, holds something else, or is of another kind or format.
    """
    if path.exists() and not path.is_dir():
        raise ResultsDirectoryError(f"`directory` must be a directory, got the file {str(path)!r}.")
    path.mkdir(parents=True, exist_ok=True)
    # A process that was killed while it wrote leaves a temporary file; in a collection it may belong to another run.
    leftovers = list(path.glob(f"{_TEMPORARY}*"))
    if kind == "run":
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
    entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(_TEMPORARY))
    if MARKER in entries:
        found = _read_marker(path).get("kind")
        if found != kind:
            raise ResultsDirectoryError(
                f"`directory` {str(path)!r} must be a {kind}, got a {found}. "
                + ("Give the directory above it." if found == "run" else "Give a directory inside it.")
            )
        return
    if entries:
        shown = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
        raise ResultsDirectoryError(
            f"`directory` {str(path)!r} must be empty or written by mtl-bench, got {len(entries)} other "
            f"entries ({shown}). Choose a new directory."
        )
    write_atomically(path / MARKER, json.dumps({"format": FORMAT, "kind": kind}) + "\n")


class Collection:
    """A directory of runs.

    Args:
        path: it is made if it does not exist.

    Raises:
        ResultsDirectoryError: ``path`` is not empty and not a collection.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _claim(self.path, "collection")

    def run_path(self, name: str) -> Path:
        """Where the run of that name lives."""
        return self.path / name


class RunDirectory:
    """The files of one run.

    ========================  =====================================================================
    ``mtl-bench.json``        marker with the format version
    ``config.json``           the resolved configuration
    ``environment.json``      versions and hardware of the process that began the run
    ``metrics.csv``           epoch, step, split, task, metric, unit, higher_is_better, value
    ``times.csv``             epoch, step, part, seconds: what the time since the evaluation before was spent on
    ``events.jsonl``          one object per teleport: epoch, step and what the method reported
    ``trace.csv``             one row per step, where the benchmark records a path
    ``checkpoint.pt``         everything a restart needs; the other tables are written from it
    ``result.json``           the reported values; present when the run is complete
    ``figures/``              whatever was drawn
    ========================  =====================================================================

    Args:
        path: it is made if it does not exist.
        config: the resolved configuration of the run that wants to write here.

    Raises:
        ResultsDirectoryError: ``path`` is not empty and not a run's, or a run's with another configuration.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        _claim(self.path, "run")
        if self.config_file.is_file():
            _refuse_difference(self.path, self.read_config(), json.loads(json.dumps(config)))
            return
        write_atomically(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        write_atomically(self.config_file, json.dumps(config, indent=2) + "\n")

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A run's directory as it stands, for reading.

        Raises:
            ResultsDirectoryError: there is no run.
        """
        path = Path(path)
        if not (path / MARKER).is_file() or _read_marker(path).get("kind") != "run":
            raise ResultsDirectoryError(f"`directory` must hold a run, got {str(path)!r}, which does not.")
        if not (path / "config.json").is_file():
            raise ResultsDirectoryError(
                f"`directory` must hold a run that began, got {str(path)!r} without config.json."
            )
        directory = cls.__new__(cls)
        directory.path = path
        return directory

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def checkpoint_file(self) -> Path:
        """Where a restart begins."""
        return self.path / "checkpoint.pt"

    @property
    def result_file(self) -> Path:
        """Present when the run is complete."""
        return self.path / "result.json"

    @property
    def figures(self) -> Path:
        """Folder of the figures; made on first use."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run that lives here."""
        return dict(json.loads(self.config_file.read_text()))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from working on the same run; a process that dies lets go.

        Raises:
            ResultsDirectoryError: another process is working on it.
        """
        if fcntl is None:
            yield
            return
        with (self.path / MARKER).open() as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResultsDirectoryError(
                    f"`directory` {str(self.path)!r} must be free, got a run that another process is working on. Wait "
                    "for it, or choose another directory."
                ) from None
            yield

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.checkpoint_file, buffer.getvalue())

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU, or None."""
        if not self.checkpoint_file.is_file():
            return None
        return dict(torch.load(self.checkpoint_file, map_location="cpu", weights_only=True))

    def write_table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Replace a CSV file. Floats are written so that reading them gives the same bits."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows)
        write_atomically(self.path / name, buffer.getvalue(), durable=False)

    def write_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Replace ``events.jsonl``."""
        write_atomically(
            self.path / "events.jsonl", "".join(json.dumps(event) + "\n" for event in events), durable=False
        )

    def read_events(self) -> list[dict[str, Any]]:
        """The events recorded so far."""
        file = self.path / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of ``metrics.csv`` written so far."""
        file = self.path / "metrics.csv"
        return list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []

    def read_trace(self) -> list[list[float]]:
        """The recorded path, one row per step, or nothing."""
        file = self.path / "trace.csv"
        if not file.is_file():
            return []
        return [[float(cell) for cell in row] for row in list(csv.reader(file.read_text().splitlines()))[1:]]

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the run complete."""
        write_atomically(self.result_file, json.dumps(result, indent=2) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The result of a complete run, or None."""
        return dict(json.loads(self.result_file.read_text())) if self.result_file.is_file() else None


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def _refuse_difference(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    old, new = _flatten(dict(found)), _flatten(dict(wanted))
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if changed:
        shown = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:5])
        raise ResultsDirectoryError(
            f"`directory` {str(path)!r} must belong to the same configuration, got a run with {shown}. "
            "Choose another directory, or the options of the run that is there."
        )
