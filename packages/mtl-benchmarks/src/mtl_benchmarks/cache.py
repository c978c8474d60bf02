"""What is computed or collected once and kept between runs: one folder of the user's, one file each."""

from __future__ import annotations

import os
import tempfile
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy

from mtl_core import InvalidInputError

__all__ = ["cache_folder", "held_in", "read_arrays", "write_arrays"]

_LAYOUT = "layout"
"""Name of the entry that says what a file holds; a reader of another version finds another text there."""


def cache_folder() -> Path:
    """The folder for what can be made again: ``MTL_CACHE``, else ``mtl-benchmarks`` in the user's cache folder.

    Nothing is made here; writing makes it.
    """
    named = os.environ.get("MTL_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mtl-benchmarks"


def write_arrays(path: Path, arrays: Mapping[str, numpy.ndarray], *, layout: str) -> None:
    """Write arrays to one ``.npz`` file, so that a reader sees all of it or nothing.

    Args:
        path: the file; its folder is made.
        arrays: name → array.
        layout: what the file holds and in which version; ``read_arrays`` compares it.

    Raises:
        InvalidInputError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {_LAYOUT: numpy.array(layout), **arrays}
        # A file of its own for each process, as several may collect the same at once; the last one to be renamed stays.
        # In the same folder, since a rename is atomic only within a file system.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                numpy.savez(file, **content)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidInputError(
            f"the cache folder must be writable, got {str(path.parent)!r}: {error.strerror}. Set MTL_CACHE to a folder "
            "with room."
        ) from None


def read_arrays(path: Path, *, layout: str) -> dict[str, numpy.ndarray] | None:
    """The arrays that ``write_arrays`` wrote, or None if there is no such file.

    Raises:
        InvalidInputError: the file is damaged, or holds another layout.
    """
    if not path.is_file():
        return None
    try:
        # numpy.load would make something else of a file that is no archive.
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive of arrays, or cut off")
        with numpy.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, *_OF_HEADERS, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            f"the cache file {str(path)!r} must be readable, got {type(error).__name__}: {error}. Delete it: it is "
            "made again."
        ) from None
    there = str(found.pop(_LAYOUT)) if _LAYOUT in found else "none"
    if there != layout:
        raise InvalidInputError(
            f"the cache file {str(path)!r} must hold {layout!r}, got {there!r}, of another version. Delete it: it is "
            "made again."
        )
    return found


_OF_HEADERS = (SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError)
"""What else a changed byte brings about: numpy reads a header as a Python expression. Of entries that seem encrypted or
packed in an unknown way, zipfile raises RuntimeError or NotImplementedError, which is one."""


@contextmanager
def held_in(path: Path, what: str) -> Iterator[None]:
    """Name the file in the cache where its arrays are not what they are to be.

    Args:
        path: the file.
        what: what is made of its arrays meanwhile.

    Raises:
        InvalidInputError: that raised ``KeyError``, ``TypeError`` or ``ValueError``.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        got = f"no array {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise InvalidInputError(
            f"the cache file {str(path)!r} must hold {what}, got: {got}. Delete it: it is made again."
        ) from None
