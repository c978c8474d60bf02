"""What a directory is: ours or not, a run, one of soft actor-critic or a collection, of this format or another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from mtl_benchmarks.storage.files import damaged, entries, exists, is_directory, parsed, read
from mtl_core import ResultsDirectoryError

__all__ = ["FORMAT", "LOCK", "MARKER", "Kind", "kind_of", "marker", "refuse_kind"]

FORMAT = 2
"""Version of the layout below. A reader refuses a directory of another version."""

MARKER = "mtl-bench.json"
"""Name of the file that says that a directory is ours, of which kind, and in which format version."""

LOCK = "mtl-bench.lock"
"""Name of the empty file that a process holds while it works on a run."""

Kind = Literal["run", "collection", "sac"]


def marker(kind: Kind) -> bytes:
    """The content of the marker."""
    return (json.dumps({"format": FORMAT, "kind": kind}) + "\n").encode()


def kind_of(path: Path) -> Kind | None:
    """What a directory is: its kind, or None where there is no directory or nothing in it.

    One without a marker that holds nothing but directories of ours is a collection: a study whose runs go to
    ``runs/study`` makes ``runs`` on the way, where the next command wants its own.

    Raises:
        ResultsDirectoryError: it is a file, holds something else, or is of another format version.
    """
    if not is_directory(path):
        return None
    # A process that was killed before it wrote the marker leaves its lock file.
    names = [name for name in entries(path) if name != LOCK]
    if MARKER not in names:
        if names and all(exists(path / name / MARKER) for name in names):
            return "collection"
        if names:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise ResultsDirectoryError(
                f"`directory` {str(path)!r} must be empty or written by mtl-bench, got {len(names)} entries without "
                f"{MARKER} ({shown}). Choose a new directory."
            )
        return None
    content = read(path / MARKER)
    kinds: dict[bytes, Kind] = {marker(kind): kind for kind in get_args(Kind)}
    if content not in kinds:
        raise _other_marker(path, content)
    return kinds[content]


def _other_marker(path: Path, content: bytes) -> ResultsDirectoryError:
    try:
        found = parsed(content)["format"]
    except (ValueError, KeyError, TypeError):
        found = FORMAT
    if found == FORMAT:
        # A marker of our format that is not one of ours to the byte was edited or cut off.
        line = marker("run" if exists(path / "config.json") else "collection").decode().strip()
        way_out = f"If the directory is of mtl-bench, write {line} into it."
        return damaged(path / MARKER, repr(content[:80]), way_out)
    return ResultsDirectoryError(
        f"`directory` {str(path)!r} must have format {FORMAT}, got {found!r} in {MARKER}. Choose another directory, or "
        "read it with the version of mtl-benchmarks that wrote it."
    )


def refuse_kind(path: Path, wanted: Kind) -> bool:
    """Refuse what is of another kind; whether it is of this one already."""
    found = kind_of(path)
    if found not in (None, wanted):
        way_out = {"run": "Give the directory above it.", "collection": "Give a directory inside it."}.get(
            found, "It is of mtl-bench sac, whose metrics.csv is its table."
        )
        by = f" by its {MARKER}" if exists(path / MARKER) else ""
        raise ResultsDirectoryError(f"`directory` {str(path)!r} must be a {wanted}, got a {found}{by}. {way_out}")
    return found is not None
