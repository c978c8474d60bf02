"""Methods beside each other over several seeds, each alone, with COST, and with the controls of COST.

``mtl-bench study BENCHMARK --methods …`` prints two tables per case of the benchmark: every metric of every method, and
the differences that matter, taken seed by seed, in the shape of appendix A.2 of the COST paper. The runs of one seed
share their start and their batches, so that such a difference holds less noise than one of two means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.components.making import TELEPORTS, make_benchmark, teleport_class
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.metrics import Metric, delta_m
from mtl_benchmarks.runs.baselines import own_baselines, single_task_configs
from mtl_benchmarks.runs.config import RunConfig
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.runs.session import with_baselines
from mtl_benchmarks.studies.controls import CONTROLS, HEADINGS, control_of
from mtl_core import InvalidParameterError

__all__ = ["ALONE", "COST", "StudyRow", "measure_heading", "standing_metric", "study", "study_table"]

ALONE, COST = "none", "cost"
"""The methods alone, and with COST."""


@dataclass(frozen=True)
class StudyRow:
    """What became of a method.

    Attributes:
        name: the method's.
        measure: teleport → seed → Δm in percent, or the benchmark's main metric where there is no Δm.
        seconds: teleport → training time of one run.
    """

    name: str
    measure: Mapping[str, Mapping[int, float]]
    seconds: Mapping[str, float]

    def difference(self, teleport: str, other: str = ALONE) -> Estimate:
        """Mean over the seeds of one way's measure minus another's."""
        own, than = self.measure[teleport], self.measure[other]
        return Estimate.of([own[seed] - than[seed] for seed in own])


def study(
    benchmark: Choice,
    methods: Sequence[Choice],
    *,
    seeds: Sequence[int],
    out: str | Path,
    teleports: Sequence[str | Choice] = (ALONE,),
    settings: Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: Callable[[RunResult], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[list[StudyRow], list[RunResult]]:
    """Train every method with every seed on one case of a benchmark; complete runs are only read.

    Args:
        benchmark: one case, with its options.
        methods: with the options that differ from their defaults.
        seeds: of the runs.
        out: the collection of runs.
        teleports: names, or names with options; ``"none"`` is the methods alone, which always belong to it, and
            ``"random"`` and ``"memory"`` without options the controls of COST (``studies.controls``), which then
            belongs to it, too.
        settings: what else ``RunConfig.resolve`` takes, the same for all runs: ``tasks``, ``epochs`` and so on.
        processes: how many runs at a time.
        progress: called with each result.
        say: called with what a person should know, see ``run``; None: a warning.

    Returns:
        one row per method, and all runs, the single-task ones first.

    Raises:
        UnknownNameError: a method, teleport or option that does not exist.
        InvalidParameterError: no method or no seed.
    """
    if not methods or not seeds:
        raise InvalidParameterError(f"`methods` and `seeds` must not be empty, got {len(methods)} and {len(seeds)}.")
    ways, controls = _ways([Choice(each) if isinstance(each, str) else each for each in teleports])

    def resolve(method: Choice, teleport: Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, **(settings or {}))

    planned = {
        (k, label, s): resolve(m, way, s) for label, way in ways.items() for k, m in enumerate(methods) for s in seeds
    }
    first = with_baselines(list(planned.values()))
    runs = run_all(first, out, processes=processes, progress=progress, say=say)
    by_name = {result.config.name: result for result in runs}
    found = {key: by_name[config.name] for key, config in planned.items()}
    if controls:
        like = _controlled(ways)
        more = {
            (k, control, seed): resolve(method, control_of(control, found[k, like, seed]), seed)
            for control in controls
            for k, method in enumerate(methods)
            for seed in seeds
        }
        moved = run_all(list(more.values()), out, processes=processes, progress=progress, say=say)
        runs += [run for run in moved if run.config.name not in by_name]
        found |= dict(zip(more, moved, strict=True))
    return _rows(methods, found, runs, next(iter(planned.values()))), runs


def _ways(teleports: Sequence[Choice]) -> tuple[dict[str, Choice | None], list[str]]:
    """Label → what moves the parameters, and which controls belong to it."""
    ways: dict[str, Choice | None] = {ALONE: None}
    controls: list[str] = []
    for choice in teleports:
        if choice.name.lower() == ALONE:
            continue
        cls = teleport_class(choice.name)
        name = TELEPORTS.name_of(choice.name, cls)
        if name in CONTROLS and not choice.options:
            controls.append(name)
            continue
        # Options stand in the label only where two ways would have the same one: headings of tables are narrow.
        ways[_named(Choice(name, choice.options)) if name in ways else name] = choice
    if controls and not any(way is not None and _is_cost(way) for way in ways.values()):
        ways[COST] = Choice(COST)
    return ways, list(dict.fromkeys(controls))


def _is_cost(choice: Choice) -> bool:
    return teleport_class(choice.name) is TELEPORTS.find(COST)


def _controlled(ways: Iterable[str]) -> str:
    """The first way with COST, whose controls they are."""
    return next(label for label in ways if label == COST or label.startswith(f"{COST} ("))


def _rows(
    methods: Sequence[Choice],
    found: Mapping[tuple[int, str, int], RunResult],
    runs: Sequence[RunResult],
    config: RunConfig,
) -> list[StudyRow]:
    baselines = own_baselines(config, runs)
    metric = standing_metric(config)

    def measure(result: RunResult) -> float:
        return delta_m(result.values, baselines) if baselines else result.values[metric.name]

    rows = []
    for k, method in enumerate(methods):
        own: dict[str, dict[int, RunResult]] = {}
        for (number, way, seed), result in found.items():
            if number == k:
                own.setdefault(way, {})[seed] = result
        rows.append(
            StudyRow(
                name=_named(method),
                measure={way: {s: measure(result) for s, result in by_seed.items()} for way, by_seed in own.items()},
                seconds={way: sum(r.seconds for r in by_seed.values()) / len(by_seed) for way, by_seed in own.items()},
            )
        )
    return rows


def standing_metric(config: RunConfig) -> Metric:
    """What stands for a run where there is no Δm: the last of the benchmark's metrics that its tasks have."""
    benchmark = make_benchmark(config.benchmark)
    known = [m for m in benchmark.metrics if m.task in config.tasks or m.task not in benchmark.tasks]
    return benchmark.main_metric if benchmark.main_metric in known else known[-1]


def measure_heading(config: RunConfig) -> str:
    """How tables call what stands for a run."""
    if single_task_configs(config):
        return "Δm % ↓"
    metric = standing_metric(config)
    return f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"


def _named(method: Choice) -> str:
    values = {name: value.name if isinstance(value, Choice) else value for name, value in method.options.items()}
    options = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{method.name} ({options})" if options else method.name


def study_table(rows: Sequence[StudyRow], *, title: str, heading: str) -> Table:
    """One line per method: alone, against the first seed by seed, and what teleports and the control change.

    Args:
        rows: from ``study``.
        title: of the table.
        heading: of the measure.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    ways = [way for way in rows[0].measure if way != ALONE and way not in CONTROLS]
    controls = [way for way in rows[0].measure if way in CONTROLS]
    headings = ["method", f"alone\n{heading}", f"minus\n{rows[0].name}"]
    for way in ways:
        headings += [f"with {'COST' if way == COST else way}\n{heading}", "minus\nalone"]
    for control in controls:
        headings += [f"{HEADINGS[control]}\n{heading}", f"COST minus\n{control}"]
    for number, text in enumerate(headings):
        table.add_column(text, justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        alone = row.measure[ALONE]
        against = [value - rows[0].measure[ALONE][seed] for seed, value in alone.items()]
        cells = [row.name, Estimate.of(list(alone.values())).brief(), Estimate.of(against).brief() if number else ""]
        for way in ways:
            cells += [Estimate.of(list(row.measure[way].values())).brief(), row.difference(way).brief()]
        for control in controls:
            moved = Estimate.of(list(row.measure[control].values())).brief()
            cells += [moved, row.difference(_controlled(ways), control).brief()]
        table.add_row(*cells)
    table.caption = (
        "Means over seeds ± half of the 95 % interval by Student's t; differences are taken seed by seed. An interval "
        "that holds 0 shows no effect, and of many intervals about one in twenty misses."
    )
    table.caption_justify = "left"
    return table
