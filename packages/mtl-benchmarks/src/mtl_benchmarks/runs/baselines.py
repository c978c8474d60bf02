"""Single-task baselines: trained by the same code, kept beside the runs that are compared with them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.configuration.selection import learned_metrics
from mtl_benchmarks.metrics import Baseline
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.measure import Measure, measure_of
from mtl_benchmarks.runs.runner import RunResult

__all__ = ["measure_against", "own_baselines", "single_task_configs", "single_tasks"]


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
        runs: runs, among them the single-task ones; others are passed over, and copies count once.

    Returns:
        One baseline per metric of the trained tasks, or none at all where there can be no Δm, see
        :func:`measure_against`.
    """
    return measure_against(config, runs).baselines


def measure_against(config: RunConfig, runs: Iterable[RunResult]) -> Measure:
    """What stands for a run of this configuration, by the rule of :mod:`mtl_benchmarks.runs.measure`.

    Args:
        config: a multi-task run.
        runs: as for :func:`own_baselines`.
    """
    wanted = {single.digest(with_seed=False): single for single in single_task_configs(config)}
    singles: dict[str, dict[int, float]] = {}
    metrics = make_benchmark(config.benchmark).metrics
    for run in distinct(runs)[0]:
        single = wanted.get(run.config.digest(with_seed=False))
        for metric in metrics if single is not None else ():
            if metric.task in run.config.tasks:
                singles.setdefault(metric.name, {})[run.config.seed] = run.values.get(metric.name, math.nan)
    known = {metric.name for metric in learned_metrics(make_benchmark(config.benchmark), config.tasks)}
    source = f" of this code{_network(config)}"
    return measure_of(metrics, singles, tasks=config.tasks, known=known, source=source)


def _network(config: RunConfig) -> str:
    """Which network the single-task runs have, where it is another one."""
    return "" if config.baseline_model is None else f" with the network {config.baseline_model.name}"
