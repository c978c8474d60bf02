"""Which runs a path stands for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtl_benchmarks.results import MARKER
from mtl_benchmarks.runner import RunResult, load_result
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
        if (path / "config.json").is_file():
            asked[path.resolve()] = load_result(path)
            parent = path.resolve().parent
        elif (path / MARKER).is_file():
            parent = path.resolve()
            for directory in _complete(parent):
                asked[directory] = load_result(directory)
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
        if (path / MARKER).is_file() and not (path / "config.json").is_file()
        for directory in sorted(path.iterdir())
        if (directory / "config.json").is_file() and not (directory / "result.json").is_file()
    ]


def _complete(collection: Path) -> list[Path]:
    return sorted(
        path for path in collection.iterdir() if (path / "result.json").is_file() and (path / MARKER).is_file()
    )
