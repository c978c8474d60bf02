"""Carry out a plan of runs with live progress, and print what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from mtl_benchmarks.baselines import single_tasks
from mtl_benchmarks.command_line import Plan
from mtl_benchmarks.components import make_benchmark
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.report import comparison_table, group_runs, moves_table
from mtl_benchmarks.results import Collection
from mtl_benchmarks.runner import RunResult, distinct, run
from mtl_benchmarks.trainer import Progress

__all__ = ["execute", "open_console", "planned", "print_report", "with_baselines"]

_REFRESH = 0.2


def open_console() -> Console:
    """A console as wide as the terminal; where the output goes to a file or pipe, wide enough for the tables."""
    # Names and paths are printed as they are: brackets in them are no mark-up, and :words: no pictures.
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=200, markup=False, emoji=False)


def with_baselines(configs: Sequence[RunConfig]) -> tuple[RunConfig, ...]:
    """The configurations with the single-task runs they are measured against, each once, these first."""
    return (*single_tasks(configs), *configs)


def planned(plan: Plan) -> tuple[RunConfig, ...]:
    """The runs that a plan stands for, in the order in which they are carried out."""
    return with_baselines(plan.configs) if plan.baselines else plan.configs


def execute(plan: Plan, console: Console) -> list[RunResult]:
    """Run everything in the plan; runs that are complete already are read, broken-off ones finished."""
    collection = Collection(plan.out)
    configs = planned(plan)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}", markup=False),
    )
    results = []
    with ProgressBar(*columns, console=console, refresh_per_second=5) as bars:
        overall = bars.add_task("all runs", total=len(configs), state="")
        for config in configs:
            results.append(_with_bar(config, collection, plan.checkpoint_every, bars))
            bars.advance(overall)
    return results


def _with_bar(config: RunConfig, collection: Collection, checkpoint_every: int | None, bars: ProgressBar) -> RunResult:
    case = "".join(f" {key} {value}" for key, value in make_benchmark(config.benchmark).case_options().items())
    bar = bars.add_task(f"{config.benchmark.name}{case} · {config.label} · seed {config.seed}", total=None, state="")
    shown = 0.0

    def progress(now: Progress) -> None:
        nonlocal shown
        if time.perf_counter() - shown < _REFRESH and now.done < now.total:
            return
        shown = time.perf_counter()
        moved = now.recorder.n_events(accepted=True)
        losses = " ".join(f"{loss:.3f}" for loss in now.recorder.last_losses)
        bars.update(
            bar, total=now.total, completed=now.done, state=f"{losses}" + (f" · {moved} teleports" if moved else "")
        )

    def say(text: str) -> None:
        bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    result = run(
        config, collection.run_path(config.name), checkpoint_every=checkpoint_every, progress=progress, say=say
    )
    steps = max(1, bars.tasks[bars.task_ids.index(bar)].completed)
    bars.update(bar, total=steps, completed=steps, state="done")
    return result


def print_report(
    runs: Sequence[RunResult],
    console: Console,
    *,
    others: Sequence[RunResult] = (),
    figures: Path | None = None,
) -> None:
    """One table per benchmark and case; figures of all of them if a directory is given. Copies of a run count once."""
    given, runs = runs, distinct(runs)
    for copy in given:
        if not any(copy is run for run in runs):
            console.print(f"counted once: {copy.directory} is a copy of another run", markup=False, soft_wrap=True)
    for title, members in by_problem(runs).items():
        pool = [run for run in others if _problem(run.config) == title]
        groups = group_runs(members, others=pool)
        console.print(comparison_table(groups, title=title))
        moved = moves_table(groups, title=f"{title}: teleports")
        if moved is not None:
            console.print(moved)
    if figures is not None:
        from mtl_benchmarks.figures import draw_all

        for path in draw_all(runs, figures):
            console.print(f"figure: {path}", markup=False, soft_wrap=True)


def by_problem(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs by benchmark and case, which is as far as numbers may be compared."""
    found: dict[str, list[RunResult]] = {}
    for result in runs:
        found.setdefault(_problem(result.config), []).append(result)
    return found


def _problem(config: RunConfig) -> str:
    case = make_benchmark(config.benchmark).case_options()
    return " ".join([config.benchmark.name, *(f"{key} {value}" for key, value in case.items())])
