"""Which runs a path stands for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtl_benchmarks.runs.ended import load_ended
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.files import entries, exists
from mtl_benchmarks.storage.marker import LOCK, MARKER, kind_of
from mtl_core import ResultsDirectoryError

__all__ = ["find_runs", "incomplete_runs"]


def find_runs(paths: Iterable[str | Path], *, siblings: bool = True) -> tuple[list[RunResult], list[RunResult]]:
    """The runs behind paths that have come to an end: complete, or stopped because their numbers became none.

    Args:
        paths: directories of runs, or collections, which stand for all their runs. What else lies in a collection, as
            ``runs/*`` names its marker and its pages too, is passed over beside these.
        siblings: also look for single-task runs in the collections that hold the given runs.

    Returns:
        The runs that were asked for, and the others that were found beside them.

    Raises:
        ResultsDirectoryError: a path is neither, or no run in it is complete.
    """
    asked: dict[Path, RunResult] = {}
    beside: dict[Path, RunResult] = {}
    named = _without_neighbours(paths)
    for path in named:
        kind = kind_of(path)
        if kind == "run":
            asked[path.resolve()] = load_ended(path)
            parent = path.resolve().parent
        elif kind == "collection":
            parent = path.resolve()
            for directory in _ended(parent):
                asked[directory] = load_ended(directory)
        elif kind == "sac":
            raise ResultsDirectoryError(
                f"`runs` must be of mtl-bench run, got {str(path)!r} of mtl-bench sac, whose metrics.csv is its table."
            )
        else:
            raise ResultsDirectoryError(f"`runs` must be directories written by mtl-bench, got {str(path)!r}.")
        if siblings:
            beside |= {found: load_ended(found) for found in _ended(parent) if found not in beside}
    if all(run.stopped for run in asked.values()):
        if asked:
            raise ResultsDirectoryError(
                f"`runs` must hold a complete run, got {len(asked)} that stopped as their numbers became none. Train "
                "with a smaller `lr`, with clipping or another method."
            )
        inside = [str(path / name) for path in named for name in entries(path) if _is_collection(path / name)]
        way_out = f"Give what lies inside: {', '.join(inside)}." if inside else "Start the broken-off ones again."
        raise ResultsDirectoryError(f"`runs` must hold a complete run, got none. {way_out}")
    others = [run for path, run in beside.items() if path not in asked]
    return list(asked.values()), others


def incomplete_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Runs in the given collections that began and have not ended: broken off, or not finished yet."""
    return [
        directory
        for path in _without_neighbours(paths)
        if kind_of(path) == "collection"
        for directory in (path / name for name in entries(path))
        if exists(directory / "config.json") and not _has_ended(directory)
    ]


def _without_neighbours(paths: Iterable[str | Path]) -> list[Path]:
    """The paths but those of something else in a collection; all of them where nothing is left."""
    given = [Path(path) for path in paths]
    return [path for path in given if not _is_neighbour(path)] or given


def _is_neighbour(path: Path) -> bool:
    """Whether a path is of something that lies beside the runs of a collection: its marker, a page, pictures."""
    ours = (MARKER, LOCK, "config.json", "result.json")  # a run that has lost one of them is refused, not passed over
    return exists(path) and exists(path.parent / MARKER) and not any(exists(path / name) for name in ours)


def _is_collection(path: Path) -> bool:
    return exists(path / MARKER) and kind_of(path) == "collection"


def _has_ended(directory: Path) -> bool:
    return any(exists(directory / name) for name in ("result.json", "stopped.json"))


def _ended(collection: Path) -> list[Path]:
    found = [collection / name for name in entries(collection) if _has_ended(collection / name)]
    # One that has lost its marker is refused where it is read, and not passed over.
    return [path for path in found if exists(path / MARKER) or exists(path / LOCK)]
