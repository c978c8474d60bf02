"""Runs that have come to an end: complete ones, and those that stopped because their numbers became none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.configuration.selection import learned_metrics
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import RunResult, load_result, read_run_config
from mtl_benchmarks.storage.files import exists
from mtl_benchmarks.storage.results import Collection, RunDirectory
from mtl_core import NonFiniteGradientError, NonFiniteLossError, NonFiniteStateError

__all__ = ["load_ended", "load_stopped", "train_or_stop"]

_DIVERGENCE = (NonFiniteLossError, NonFiniteGradientError, NonFiniteStateError)


def train_or_stop(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    processes: int = 1,
    progress: Callable[[RunResult], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[RunResult]:
    """As :func:`~mtl_benchmarks.runs.pool.run_all`, but a run whose numbers become none does not end the others.

    Returns:
        the results, in the order of ``configs``; those that stopped as :func:`load_stopped` reads them.
    """
    stopped: dict[str, RunResult] = {}

    def spare(config: RunConfig, error: Exception) -> bool:
        if isinstance(error, _DIVERGENCE):
            stopped[config.name] = load_stopped(Collection.path_in(out, config.name))
        return isinstance(error, _DIVERGENCE)

    found = run_all(configs, out, processes=processes, progress=progress, say=say, spare=spare)
    by_name = {result.config.name: result for result in found} | stopped
    return [by_name[config.name] for config in configs]


def load_ended(directory: str | Path) -> RunResult:
    """A complete run, or one that stopped because its numbers became none: see :func:`load_stopped`.

    Raises:
        DamagedFileError: a file is not what was written.
        ResultsDirectoryError: there is no run, or it was broken off.
    """
    files = RunDirectory.existing(directory)
    stopped = not exists(files.result_file) and exists(files.stopped_file)
    return load_stopped(directory) if stopped else load_result(directory)


def load_stopped(directory: str | Path) -> RunResult:
    """A run that stopped because its numbers became none: every metric that it would have is NaN.

    Left out of a comparison, a method would look better by the runs that it has lost.

    Raises:
        DamagedFileError: its configuration is not what was written.
        ResultsDirectoryError: there is no run.
    """
    files = RunDirectory.existing(directory)
    config = read_run_config(files)
    metrics = learned_metrics(make_benchmark(config.benchmark), config.tasks)
    why = files.read_stopped() or "for a reason that was not noted"
    return RunResult(config, files.path, {m.name: math.nan for m in metrics}, (), 0.0, stopped=why)
