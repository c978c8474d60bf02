"""Several runs at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.results import Collection
from mtl_benchmarks.runner import RunResult, run
from mtl_core.checks import positive_int

__all__ = ["run_all"]


def run_all(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    processes: int = 1,
    progress: Callable[[RunResult], None] | None = None,
) -> list[RunResult]:
    """Train every configuration in a collection of runs; complete runs are only read, broken-off ones finished.

    What a run computes does not depend on how many run beside it; the seconds it takes do.

    Args:
        configs: the runs.
        out: the collection.
        processes: how many runs at a time; with 1 they run in this process.
        progress: called with each result, in the order of ``configs``.

    Returns:
        the results, in the same order.

    Raises:
        ResultsDirectoryError: ``out`` holds something else.
        InvalidParameterError: ``processes`` is not a positive whole number.
    """
    positive_int("processes", processes)
    collection = Collection(out)
    jobs = [(config, collection.run_path(config.name)) for config in configs]
    results: list[RunResult] = []
    if processes == 1:
        for config, path in jobs:
            results.append(run(config, path))
            if progress is not None:
                progress(results[-1])
        return results
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(_run, jobs):
            results.append(result)
            if progress is not None:
                progress(result)
    return results


def _run(job: tuple[RunConfig, Path]) -> RunResult:
    config, path = job
    return run(config, path)
