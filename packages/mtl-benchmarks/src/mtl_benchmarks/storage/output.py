"""Where a command writes what it found: looked at before the work, so that hours of training are not for nothing."""

from __future__ import annotations

import os
from pathlib import Path

from mtl_benchmarks.storage.files import make_directory, on_disk, part_of, remove
from mtl_core import ResultsDirectoryError

__all__ = ["writable_directory", "writable_file"]


def writable_file(name: str, path: str | Path) -> Path:
    """A file that can be written and replaced: where links lead, in a folder that is made if it does not exist.

    Args:
        name: of the argument, for the error: ``"--csv"``.
        path: of the file.

    Raises:
        ResultsDirectoryError: it is a directory or a device, or cannot be written.
    """
    given = os.fspath(path)
    with on_disk(Path(given), "writable"):
        target = Path(os.path.realpath(given))
    if given.endswith(os.sep) or target.is_dir():
        raise ResultsDirectoryError(f"`{name}` must be a file, got the directory {given!r}. Name a file in it.")
    if target.exists() and not target.is_file():
        raise ResultsDirectoryError(f"`{name}` must be a file, got the device or pipe {given!r}. Name a file.")
    if target.exists() and not os.access(target, os.W_OK):
        raise ResultsDirectoryError(f"`{name}` must be writable, got {given!r}, which is not. Name another file.")
    _try(name, given, target.parent, target.name)
    return target


def writable_directory(name: str, path: str | Path) -> Path:
    """A directory in which files can be made; it is made if it does not exist.

    Raises:
        ResultsDirectoryError: something else has its name, or nothing can be written there.
    """
    target = Path(path)
    _try(name, os.fspath(path), target, "file")
    return target


def _try(name: str, given: str, folder: Path, file: str) -> None:
    try:
        make_directory(folder)
        with part_of(folder / file, b"", durable=False) as part:
            remove(part)
    except ResultsDirectoryError as error:
        raise ResultsDirectoryError(f"`{name}` must be writable, got {given!r}: {error}") from error
