"""Short digests of files and folders that may be larger than what there is time to read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

__all__ = ["contents"]

_MOST_BYTES = 2**27
"""So many bytes are read, of all files together: a text file of labels whole, of pictures their beginnings and ends."""
_MOST_FILES = 2048
"""So many files are opened, evenly spread over all: a folder of faces has a hundred times as many."""

_Entry = tuple[str, str, int, int]
"""Name in the digest, path, size, and time of the last change."""


def contents(paths: Sequence[Path]) -> str | None:
    """A digest of files, and of folders with all that is in them, or None where there is no file.

    Of every file, name and size count. Contents count whole where they are no more than 128 MiB in all; else beginning
    and end of each file, and of more than 2,048 files those of as many, evenly spread over them. Times of change do
    not count: a copy of a folder is the same data.

    Args:
        paths: files and folders; what is not there is left out.

    Example:
        >>> contents([Path("no/such/folder")]) is None
        True
    """
    entries = tuple(entry for path in paths for entry in _entries(path))
    return _digest(entries) if entries else None


def _entries(root: Path) -> Iterator[_Entry]:
    if root.is_file():
        yield from _looked_at(root.name, root)
    for folder, names in _walked(root):
        for name in names:
            path = Path(folder, name)
            yield from _looked_at(path.relative_to(root).as_posix(), path)


def _looked_at(name: str, path: Path) -> Iterable[_Entry]:
    try:
        seen = path.stat()
    except OSError:  # a link that leads nowhere
        return []
    return [(name, str(path), seen.st_size, seen.st_mtime_ns)]


def _walked(root: Path) -> Iterator[tuple[str, list[str]]]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # in place: it is what `os.walk` goes on with
        yield folder, sorted(names)


@lru_cache(maxsize=32)
def _digest(entries: tuple[_Entry, ...]) -> str:
    """Kept for files whose times have not changed: one command asks for the data of each of its runs."""
    whole = hashlib.sha256()
    stride = -(-len(entries) // _MOST_FILES)
    most = _MOST_BYTES // len(entries[::stride])
    for k, (name, path, size, _) in enumerate(entries):
        whole.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        if k % stride == 0:
            whole.update(_read(path, size, most))
    return whole.hexdigest()[:12]


def _read(path: str, size: int, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            if size <= most:
                return file.read(most)
            begin = file.read(most // 2)
            file.seek(size - most // 2)
            return begin + file.read(most // 2)
    except OSError:  # whoever reads the data will say so
        return b""
