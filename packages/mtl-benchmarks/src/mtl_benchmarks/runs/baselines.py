"""Single-task baselines: trained by the same code, kept beside the runs that are compared with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.metrics import Baseline
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.runner import RunResult

__all__ = ["own_baselines", "single_task_configs", "single_tasks", "without_share"]


def single_task_configs(config: RunConfig) -> tuple[RunConfig, ...]:
    """The runs that give the baselines of ``config``: each task alone, everything else the same.

    Their options of heads and clipping are the same as well, and so is the network, unless ``config.baseline_model``
    names another one. Several runs that differ in method or teleport share them,
    so that a directory of runs holds each only once.
    """
    if not make_benchmark(config.benchmark).has_single_task_runs or config.is_single_task:
        return ()
    return tuple(config.single_task(task) for task in config.tasks)


def single_tasks(configs: Iterable[RunConfig]) -> tuple[RunConfig, ...]:
    """The runs that give the baselines of all of ``configs``, each once."""
    return tuple({single.name: single for config in configs for single in single_task_configs(config)}.values())


def own_baselines(config: RunConfig, runs: Iterable[RunResult]) -> tuple[Baseline, ...]:
    """Mean over seeds of the single-task runs that belong to ``config``.

    Args:
        config: a multi-task run.
        runs: complete runs, among them the single-task ones; others are passed over, and copies count once.

    Returns:
        One baseline per metric of the trained tasks, or none at all if a task has no single-task run, or a value that
        nothing can be a share of; see :func:`without_share`.
    """
    found = _own_baselines(config, runs)
    return found if all(map(_has_shares, found)) else ()


def without_share(config: RunConfig, runs: Iterable[RunResult]) -> tuple[str, ...]:
    """Names of the metrics whose single-task value is 0 or not finite, for which there can be no Δm.

    Args:
        config: a multi-task run.
        runs: complete runs, among them the single-task ones.
    """
    return tuple(baseline.metric.name for baseline in _own_baselines(config, runs) if not _has_shares(baseline))


def _has_shares(baseline: Baseline) -> bool:
    return baseline.value != 0.0 and math.isfinite(baseline.value)


def _own_baselines(config: RunConfig, runs: Iterable[RunResult]) -> tuple[Baseline, ...]:
    wanted = {single.digest(with_seed=False): single for single in single_task_configs(config)}
    found: dict[str, list[RunResult]] = {digest: [] for digest in wanted}
    for run in distinct(runs)[0]:
        digest = run.config.digest(with_seed=False)
        if digest in found:
            found[digest].append(run)
    if not wanted or not all(found.values()):
        return ()
    baselines = []
    for digest, single in wanted.items():
        for metric in make_benchmark(config.benchmark).metrics:
            if metric.task in single.tasks:
                values = [run.values[metric.name] for run in found[digest]]
                source = (
                    f"{len(values)} single-task run(s) of this code{_network(config)}, seeds {_seeds(found[digest])}"
                )
                baselines.append(Baseline(metric, statistics.fmean(values), source))
    return tuple(baselines)


def _network(config: RunConfig) -> str:
    """Which network the single-task runs have, where it is another one."""
    return "" if config.baseline_model is None else f" with the network {config.baseline_model.name}"


def _seeds(runs: Sequence[RunResult]) -> str:
    return ", ".join(str(seed) for seed in sorted(run.config.seed for run in runs))
