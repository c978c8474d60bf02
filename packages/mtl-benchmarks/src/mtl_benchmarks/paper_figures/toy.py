"""Paths on the toy problem: the COST paper's figure 6, and table 2 of IMGrad's appendix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_benchmarks.benchmarks.toy import STARTS
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.figures.toy import toy_grid, toy_trajectories
from mtl_benchmarks.paper_figures.setting import Made, Setting
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import InvalidInputError

__all__ = ["grid_of_paths", "paths"]

_POINTS = 400
_NEAR = 0.5
"""Up to this distance from the minimiser of the mean loss a path counts as having reached it."""

_HEADER = ("method", "start", "step", "x1", "x2")


def _trained(setting: Setting, planned: Mapping[tuple[str, int], RunConfig]) -> dict[tuple[str, int], RunResult]:
    return dict(zip(planned, setting.train(list(planned.values())), strict=True))


def _refuse_others(setting: Setting) -> None:
    name = setting.cases[0].benchmark.name
    if name != "toy":
        raise InvalidInputError(f"`--benchmark` must be toy for this figure, got {name}: paths need a plane.")


def _thinned(run: RunResult) -> list[tuple[int, float, float]]:
    """Some steps, the first and the last among them, with the point after each; step 0 is the start."""
    start = STARTS[int(run.config.benchmark.options["start"])]
    points = [start, *(tuple(point) for point in RunDirectory.existing(run.directory).read_trace())]
    places = sorted({round(k * (len(points) - 1) / _POINTS) for k in range(_POINTS + 1)})
    return [(place, points[place][0], points[place][1]) for place in places]


def paths(setting: Setting) -> Made:
    """Each method alone and with teleports, from every start of the benchmark."""
    _refuse_others(setting)
    planned = {}
    for number, case in enumerate(setting.cases):
        for name, method in setting.labels.items():
            planned[name, number] = setting.config(method, seed=setting.seeds[0], case=case)
        for name, method in setting.labels.items():
            config = setting.config(method, setting.teleport, seed=setting.seeds[0], case=case)
            planned[f"{name} + {config.teleport.name if config.teleport else 'none'}", number] = config
    found = _trained(setting, planned)
    by_label: dict[str, list[RunResult]] = {}
    rows: list[tuple[Any, ...]] = []
    for (label, _), run in found.items():
        by_label.setdefault(label, []).append(run)
        rows += [(label, run.config.benchmark.options["start"], *point) for point in _thinned(run)]
    return Made(toy_trajectories(by_label), _HEADER, rows, _reached(by_label))


def _reached(by_label: Mapping[str, Sequence[RunResult]]) -> str:
    told = [
        f"{label} within {_NEAR} of the minimiser of the mean loss from "
        f"{sum(run.values['distance'] <= _NEAR for run in runs)} of {len(runs)} starts"
        for label, runs in by_label.items()
    ]
    return "; ".join(told)


def grid_of_paths(setting: Setting) -> Made:
    """Every method from every start: a row per start, a column per method."""
    _refuse_others(setting)
    planned = {
        (name, number): setting.config(method, seed=setting.seeds[0], case=case)
        for number, case in enumerate(setting.cases)
        for name, method in setting.labels.items()
    }
    found = _trained(setting, planned)
    rows: list[tuple[Any, ...]] = []
    drawn: dict[tuple[int, str], list[tuple[float, float]]] = {}
    distances: dict[tuple[int, str], float] = {}
    by_label: dict[str, list[RunResult]] = {}
    for (name, _), run in found.items():
        start = int(run.config.benchmark.options["start"])
        points = _thinned(run)
        rows += [(name, start, *point) for point in points]
        drawn[start, name] = [(x, y) for _, x, y in points]
        distances[start, name] = run.values["distance"]
        by_label.setdefault(name, []).append(run)
    scale = float(setting.cases[0].benchmark.options.get("scale", 1.0))
    return Made(toy_grid(drawn, distances, scale=scale), _HEADER, rows, _reached(by_label))
