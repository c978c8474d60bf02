"""Files that only grow, as logs do: how far they had come, and whether that much of them is still as it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtl_benchmarks.storage.files import damaged, digest_of, on_disk, read

__all__ = ["GrowingFiles", "content_until"]


class GrowingFiles:
    """Says how far files in a folder have come; reads only what has come since it was last asked.

    Args:
        folder: in which they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}

    def until_now(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """``size`` in bytes and ``sha256`` of each file; that much is on the disk when this returns."""
        return {name: self._until_now(name) for name in names}

    def _until_now(self, name: str) -> dict[str, Any]:
        digest = self._digests.setdefault(name, hashlib.sha256())
        size = self._sizes.get(name, 0)
        path = self.folder / name
        with on_disk(path, "readable"), path.open("rb") as file:
            # A checkpoint that outlives a power failure must not know of lines that do not.
            os.fsync(file.fileno())
            file.seek(size)
            while part := file.read(1 << 24):
                digest.update(part)
                size += len(part)
        self._sizes[name] = size
        return {"size": size, "sha256": digest.hexdigest()}


def content_until(path: Path, known: Mapping[str, Any], way_out: str) -> bytes:
    """The part of a file that was there when ``GrowingFiles`` said so.

    Args:
        path: of the file.
        known: what was said of it.
        way_out: what a person can do if it is damaged.

    Raises:
        DamagedFileError: it is shorter, or not what was written.
    """
    found = read(path)[: known["size"]]
    if digest_of(found) != known["sha256"]:
        raise damaged(path, f"other content in its first {known['size']} bytes", way_out)
    return found
