"""Figures of IMGrad's appendix: how balanced tasks are, how that is measured, and what it is good for.

Zhou et al., *Injecting Imbalance Sensitivity for Multi-Task Learning*, IJCAI 2025, appendix 3 and 4.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import spearmanr

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.figures.distributions import balance_against_imbalance, balance_histograms, progress_by_step
from mtl_benchmarks.figures.sweeps import estimates_figure, sweep_lines
from mtl_benchmarks.paper_figures.measures import balances, imbalances, progress_points
from mtl_benchmarks.paper_figures.setting import Made, Setting
from mtl_benchmarks.paper_figures.timing import times_beside
from mtl_benchmarks.runs.runner import RunResult
from mtl_core import InvalidInputError

__all__ = [
    "balance_and_imbalance",
    "distribution_of_balance",
    "measures_of_balance",
    "progress_and_failures",
    "update_intervals",
]


def _one_seed(setting: Setting) -> dict[str, RunResult]:
    """Method → its run with the first seed."""
    configs = [setting.config(method, seed=setting.seeds[0]) for method in setting.labels.values()]
    return dict(zip(setting.labels, setting.train(configs), strict=True))


def distribution_of_balance(setting: Setting) -> Made:
    """The balance κ at every recorded step."""
    runs = _one_seed(setting)
    found = {name: {step: own["pm"] for step, own in balances(run).items()} for name, run in runs.items()}
    figure = balance_histograms(
        {name: list(values.values()) for name, values in found.items()}, xlabel=r"balance $\kappa = \cos(g_0, g_m)$"
    )
    rows = [(name, step, value) for name, values in found.items() for step, value in values.items()]
    told = "; ".join(f"{name} {_spread(list(values.values()))}" for name, values in found.items())
    return Made(figure, ("method", "step", "kappa"), rows, f"κ at recorded steps: {told}")


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    middle = statistics.median(ordered)
    return f"median {middle:.2f}, nine tenths of {len(ordered)} steps between {low:.2f} and {high:.2f}"


def balance_and_imbalance(setting: Setting) -> Made:
    """κ against the ratio of the largest gradient norm to the smallest one, and their rank correlation."""
    points: dict[str, list[tuple[float, float]]] = {}
    rows: list[tuple[Any, ...]] = []
    told = []
    for name, run in _one_seed(setting).items():
        ratios, kappas = imbalances(run), balances(run)
        points[name] = [(ratio, kappas[step]["pm"]) for step, ratio in ratios.items()]
        rows += [(name, step, ratio, kappas[step]["pm"]) for step, ratio in ratios.items()]
        told.append(f"{name} {_rank_correlation(points[name])} over {len(ratios)} steps")
    figure = balance_against_imbalance(points)
    return Made(figure, ("method", "step", "imbalance ratio", "kappa"), rows, f"rank correlation: {'; '.join(told)}")


def _rank_correlation(points: Sequence[tuple[float, float]]) -> str:
    """Spearman's, or why there is none."""
    firsts, seconds = {first for first, _ in points}, {second for _, second in points}
    if min(len(firsts), len(seconds)) < 2:
        return "none, all values being equal"
    return f"{float(spearmanr(*zip(*points, strict=True)).statistic):.2f}"


_MEASURES = {"pm": "PM", "lm": "LM", "dc": "DC"}


def measures_of_balance(setting: Setting) -> Made:
    """What IMGrad comes to with each of its three measures of balance, beside the plain base; and their values."""
    named = {_measure_name(method): method for method in setting.methods}
    if len(named) < len(setting.methods):
        got = ", ".join(setting.labels)
        raise InvalidInputError(f"`--methods` must differ in their measure of balance for this figure, got {got}.")
    planned = {(name, seed): setting.config(m, seed=seed) for name, m in named.items() for seed in setting.seeds}
    found = setting.measured(planned)
    seconds, _, timed = times_beside({name: planned[name, setting.seeds[0]] for name in named}, setting)
    values = {name: [found.values[name, seed] for seed in setting.seeds] for name in named}
    rows: list[tuple[Any, ...]] = []
    for name, own in values.items():
        rows += [("run", name, seed, "", value) for seed, value in zip(setting.seeds, own, strict=True)]
    rows += [("epoch", name, "", turn, each) for name, own in seconds.items() for turn, each in enumerate(own, start=1)]
    first = found.runs[next(iter(named)), setting.seeds[0]]
    seen = balances(first)
    for measure, short in _MEASURES.items():
        rows += [("balance", short, setting.seeds[0], step, own[measure]) for step, own in seen.items()]
    columns: dict[float | str, Sequence[float]] = dict(values.items())
    figure = estimates_figure({"measure of balance": columns}, ylabel=found.label)
    spread = "; ".join(f"{short} {_spread([own[m] for own in seen.values()])}" for m, short in _MEASURES.items())
    told = ", ".join(
        f"{name} {_against(own, values[next(iter(named))])}, {statistics.median(seconds[name]):.2g} s an epoch"
        for name, own in values.items()
    )
    said = (
        f"{found.label}, {_of_seeds(setting, next(iter(named)))}: {told}; {timed}; at the steps of "
        f"{first.config.label}: {spread}"
    )
    header = ("kind", "name", "seed", "step or turn", f"{found.label}, seconds, or the balance")
    return Made(figure, header, rows, said)


def _of_seeds(setting: Setting, base: str) -> str:
    n = len(setting.seeds)
    return f"mean of {n} seeds and in brackets the difference from {base} seed by seed" if n > 1 else "one seed"


def _against(values: Sequence[float], base: Sequence[float]) -> str:
    """A mean, and where there are several seeds the mean difference from the base with its interval."""
    mean = f"{statistics.fmean(values):.2f}"
    if values is base or len(values) < 2:
        return mean
    return f"{mean} ({Estimate.of([a - b for a, b in zip(values, base, strict=True)]).brief()})"


def _measure_name(method: Choice) -> str:
    if method.name != "imgrad":
        return method.name
    return _MEASURES[method.options.get("measure", "pm")]


_INTERVALS = (1, 2, 4, 8, 16)


def update_intervals(setting: Setting) -> Made:
    """What IMGrad comes to where its weights are computed in every k-th step only, beside the plain base."""
    augmented, *rest = setting.methods
    base = rest[0] if rest else Choice("cagrad")
    planned = {
        (every, seed): setting.config(
            base if every is None else Choice(augmented.name, {**augmented.options, "update_every": every}), seed=seed
        )
        for every in (*_INTERVALS, None)
        for seed in setting.seeds
    }
    found = setting.measured(planned)
    names: dict[int | None, str] = {every: f"{augmented.name}, every {every}" for every in _INTERVALS}
    names[None] = base.name
    seconds, label, timed = times_beside(
        {name: planned[every, setting.seeds[0]] for every, name in names.items()}, setting
    )
    values = {name: [found.values[every, seed] for seed in setting.seeds] for every, name in names.items()}
    rows: list[tuple[Any, ...]] = []
    for every, name in names.items():
        rows += [
            ("run", name, every or "", seed, value) for seed, value in zip(setting.seeds, values[name], strict=True)
        ]
        rows += [("epoch", name, every or "", turn, each) for turn, each in enumerate(seconds[name], start=1)]
    figure = sweep_lines(
        {every: (values[names[every]], seconds[names[every]]) for every in _INTERVALS},
        xlabel="steps from one computation of the weights to the next",
        left=found.label,
        right=label,
        reference=values[base.name],
        named=base.name,
        log=True,
    )
    told = ", ".join(f"{_against(values[names[k]], values[base.name])} at {k}" for k in _INTERVALS)
    plain = f"{base.name} {statistics.fmean(values[base.name]):.2f}"
    said = f"{found.label}, {_of_seeds(setting, base.name)}: {told}; {plain}; {timed}"
    return Made(figure, ("kind", "method", "update_every", "seed or turn", f"{found.label}, or seconds"), rows, said)


def progress_and_failures(setting: Setting) -> Made:
    """Each task's cosine with the update, and how many steps make some task worse: a Pareto failure."""
    runs = _one_seed(setting)
    points: Mapping[str, Sequence[tuple[int, Sequence[float]]]] = {
        name: progress_points(run) for name, run in runs.items()
    }
    tasks = next(iter(runs.values())).config.tasks
    rows = [
        (name, step, task, cosine)
        for name, found in points.items()
        for step, cosines in found
        for task, cosine in zip(tasks, cosines, strict=True)
    ]
    failures = {name: sum(min(cosines) < 0 for _, cosines in found) for name, found in points.items()}
    headed = {f"{name}: {failures[name]} of {len(found)} fail": found for name, found in points.items()}
    figure = progress_by_step(headed, tasks, window=10)
    gaps = {
        name: statistics.median(max(cosines) - min(cosines) for _, cosines in found) for name, found in points.items()
    }
    told = "; ".join(
        f"{name} {failures[name]} Pareto failures at {len(found)} steps, median gap between tasks {gaps[name]:.2f}"
        for name, found in points.items()
    )
    return Made(figure, ("method", "step", "task", "cosine with the update"), rows, told)
