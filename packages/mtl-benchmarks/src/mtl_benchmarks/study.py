"""Methods beside each other over several seeds, each alone, with COST, and with random moves of the same lengths.

``mtl-bench study BENCHMARK --methods …`` prints two tables per case of the benchmark: every metric of every method, and
the differences that matter, taken seed by seed, in the shape of appendix A.2 of the COST paper. The runs of one seed
share their start and their batches, so that such a difference holds less noise than one of two means.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mtl_benchmarks.baselines import own_baselines
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.command_line import parse_choice, parse_seeds
from mtl_benchmarks.components import make_benchmark, method_class, resolve_benchmark
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.matching_lengths import lengths_of
from mtl_benchmarks.metrics import delta_m
from mtl_benchmarks.options import Choice
from mtl_benchmarks.pool import run_all
from mtl_benchmarks.report import Estimate
from mtl_benchmarks.runner import RunResult
from mtl_benchmarks.session import print_report, with_baselines
from mtl_core.checks import one_of

__all__ = ["ALONE", "CONTROL", "TELEPORTS", "StudyRow", "main", "study", "study_table"]

ALONE, COST, CONTROL = "none", "cost", "random"
TELEPORTS = (ALONE, COST, CONTROL)
"""What may move the parameters: nothing, COST, or random moves as long as those of COST with the same seed."""


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
    teleports: Sequence[str] = (ALONE,),
    epochs: int | None = None,
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
        teleports: out of ``TELEPORTS``; the methods alone always belong to it, and COST where the control does.
        epochs: None: as the benchmark's protocol says.
        processes: how many runs at a time.
        progress: called with each result.
        say: called with what a person should know, see ``run``; None: a warning.

    Returns:
        one row per method, and all runs, the single-task ones first.

    Raises:
        InvalidParameterError: a teleport that is none of these, or no seed.
        UnknownNameError: a method or option that does not exist.
    """
    wanted = {one_of("teleports", name, TELEPORTS) for name in teleports}
    ways: list[str | None] = [None, *([COST] if wanted & {COST, CONTROL} else [])]

    def resolve(method: Choice, teleport: str | Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, epochs=epochs)

    planned = {(k, way or ALONE, s): resolve(m, way, s) for way in ways for k, m in enumerate(methods) for s in seeds}
    first = with_baselines(list(planned.values()))
    runs = run_all(first, out, processes=processes, progress=progress, say=say)
    by_name = {result.config.name: result for result in runs}
    found = {key: by_name[config.name] for key, config in planned.items()}
    if CONTROL in wanted:
        controls = {}
        for k, method in enumerate(methods):
            for seed in seeds:
                lengths = lengths_of(found[k, COST, seed])
                # Where nothing moved there is nothing to match, and the control is the method alone.
                move = Choice(CONTROL, {"length": lengths}) if lengths else None
                controls[k, CONTROL, seed] = resolve(method, move, seed)
        moved = run_all(list(controls.values()), out, processes=processes, progress=progress, say=say)
        runs += [run for run in moved if run.config.name not in by_name]
        found |= dict(zip(controls, moved, strict=True))
    baselines = own_baselines(next(iter(planned.values())), runs)
    metric = make_benchmark(benchmark).main_metric

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
    return rows, runs


def _named(method: Choice) -> str:
    options = ", ".join(f"{name} {value}" for name, value in method.options.items())
    return f"{method.name} ({options})" if options else method.name


def study_table(rows: Sequence[StudyRow], *, title: str, heading: str) -> Table:
    """One line per method: alone, against the first seed by seed, and what COST and the control change.

    Args:
        rows: from ``study``.
        title: of the table.
        heading: of the measure.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    ways = rows[0].measure
    headings = ["method", f"alone\n{heading}", f"minus\n{rows[0].name}"]
    if COST in ways:
        headings += [f"with COST\n{heading}", "minus\nalone"]
    if CONTROL in ways:
        headings += [f"random moves\n{heading}", "COST minus\nrandom"]
    for number, text in enumerate(headings):
        table.add_column(text, justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        alone = row.measure[ALONE]
        against = [value - rows[0].measure[ALONE][seed] for seed, value in alone.items()]
        cells = [row.name, Estimate.of(list(alone.values())).brief(), Estimate.of(against).brief() if number else ""]
        if COST in ways:
            cells += [Estimate.of(list(row.measure[COST].values())).brief(), row.difference(COST).brief()]
        if CONTROL in ways:
            cells += [Estimate.of(list(row.measure[CONTROL].values())).brief(), row.difference(COST, CONTROL).brief()]
        table.add_row(*cells)
    table.caption = (
        "Means over seeds ± half of the 95 % interval by Student's t; differences are taken seed by seed. An interval "
        "that holds 0 shows no effect, and of many intervals about one in twenty misses."
    )
    table.caption_justify = "left"
    return table


def main(arguments: Sequence[str], console: Console) -> None:
    """The words after ``mtl-bench study``: train what is missing, print the tables.

    Raises:
        InvalidInputError: a name or number that does not fit.
    """
    parser = argparse.ArgumentParser(prog="mtl-bench study", description=__doc__)
    parser.add_argument("benchmark", help="such as digits, or digits:shift=2,width=4")
    parser.add_argument("--methods", nargs="+", default=["ls"], help="names, with options as in cagrad:c=0.5")
    parser.add_argument("--teleports", nargs="+", default=[ALONE], help=", ".join(TELEPORTS))
    parser.add_argument("--seeds", default="5", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--epochs", type=int, help="default: the benchmark's protocol")
    parser.add_argument("--processes", type=int, default=1, help="how many runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="directory of the runs")
    options = parser.parse_args(list(arguments))
    chosen = parse_choice(options.benchmark)
    benchmark_class(chosen.name)
    methods = [parse_choice(text) for text in options.methods]
    for method in methods:
        method_class(method.name)
    seeds = parse_seeds(options.seeds)
    benchmark = resolve_benchmark(chosen)
    problem = make_benchmark(benchmark)
    done = 0

    def progress(result: RunResult) -> None:
        nonlocal done
        done += 1
        line = f"  {done}: {result.config.label}, seed {result.config.seed}: {result.seconds:.1f} s"
        console.print(line, markup=False, highlight=False)

    found: list[tuple[str, list[StudyRow]]] = []
    for case in problem.cases():
        words = [benchmark.name, *(f"{key} {value}" for key, value in case.case_options().items())]
        rows, runs = study(
            Choice(benchmark.name, {**benchmark.options, **case.case_options()}),
            methods,
            seeds=seeds,
            out=options.out,
            teleports=options.teleports,
            epochs=options.epochs,
            processes=options.processes,
            progress=progress,
            say=lambda text: console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True),
        )
        print_report([run for run in runs if run.config.teleport is None or run.config.teleport.name == COST], console)
        found.append((f"{' '.join(words)}, {len(seeds)} seeds", rows))
    metric = problem.main_metric
    heading = "Δm % ↓" if problem.has_single_task_runs else f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"
    for title, rows in found:
        console.print(study_table(rows, title=title, heading=heading))
