"""Which runs a path stands for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtl_benchmarks.runs.runner import RunResult, load_result
from mtl_benchmarks.storage.files import entries, exists
from mtl_benchmarks.storage.marker import LOCK, MARKER, kind_of
from mtl_core import ResultsDirectoryError

__all__ = ["find_runs", "incomplete_runs"]


def find_runs(paths: Iterable[str | Path], *, siblings: bool = True) -> tuple[list[RunResult], list[RunResult]]:
    """The complete runs behind paths.

    Args:
        paths: directories of runs, or collections, which stand for all their runs.
        siblings: also look for single-task runs in the collections that hold the given runs.

    Returns:
        The runs that were asked for, and the others that were found beside them.

    Raises:
        ResultsDirectoryError: a path is neither, or no run in it is complete.
    """
    asked: dict[Path, RunResult] = {}
    beside: dict[Path, RunResult] = {}
    for given in paths:
        path = Path(given)
        kind = kind_of(path)
        if kind == "run":
            asked[path.resolve()] = load_result(path)
            parent = path.resolve().parent
        elif kind == "collection":
            parent = path.resolve()
            for directory in _complete(parent):
                asked[directory] = load_result(directory)
        elif kind == "sac":
            raise ResultsDirectoryError(
                f"`runs` must be of mtl-bench run, got {str(path)!r} of mtl-bench sac, whose metrics.csv is its table."
            )
        else:
            raise ResultsDirectoryError(f"`runs` must be directories written by mtl-bench, got {str(path)!r}.")
        if siblings:
            beside |= {found: load_result(found) for found in _complete(parent) if found not in beside}
    if not asked:
        raise ResultsDirectoryError("`runs` must hold a complete run, got none. Start the broken-off ones again.")
    others = [run for path, run in beside.items() if path not in asked]
    return list(asked.values()), others


def incomplete_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Runs in the given collections that began and have no result: broken off, or not finished yet."""
    return [
        directory
        for path in map(Path, paths)
        if kind_of(path) == "collection"
        for directory in (path / name for name in entries(path))
        if exists(directory / "config.json") and not exists(directory / "result.json")
    ]


def _complete(collection: Path) -> list[Path]:
    found = [collection / name for name in entries(collection) if exists(collection / name / "result.json")]
    # One that has lost its marker is refused where it is read, and not passed over.
    return [path for path in found if exists(path / MARKER) or exists(path / LOCK)]
