"""Carry out a plan of runs with live progress, and print what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from mtl_benchmarks.command_line import Plan
from mtl_benchmarks.comparison import (
    Comparison,
    Format,
    Table,
    all_tables,
    as_csv,
    as_latex,
    as_markdown,
    as_rich,
    compare,
)
from mtl_benchmarks.comparison.protocols import short_name
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.logs import make_logs
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.watching import make_ready
from mtl_benchmarks.runs.baselines import single_tasks
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.rehearsal import left_to_do, rehearse
from mtl_benchmarks.runs.runner import RunResult, run
from mtl_benchmarks.storage.marker import refuse_kind
from mtl_benchmarks.storage.results import Collection
from mtl_core import UnknownNameError

__all__ = [
    "checked_reference",
    "execute",
    "open_console",
    "planned",
    "print_report",
    "told_apart",
    "with_baselines",
]

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
    """Run everything in the plan; runs that are complete already are read, broken-off ones finished.

    Raises:
        InvalidInputError: one of them would be refused at its first step, or its log cannot be written; then none is
            begun.
    """
    configs = planned(plan)
    refuse_kind(plan.out, "collection")
    for config in left_to_do(configs, plan.out) if plan.log else ():
        make_ready(make_logs(plan.log), Collection.path_in(plan.out, config.name))
    rehearse(configs, plan.out, say=lambda text: console.print(text, highlight=False, soft_wrap=True))
    collection = Collection(plan.out)
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
        try:
            for config in configs:
                results.append(_with_bar(config, collection, plan, bars))
                bars.advance(overall)
        except BaseException:
            # What is left on the screen above the error is what was done; a bar that never moved says nothing.
            for bar in bars.tasks:
                bars.update(bar.id, visible=bar.completed > 0)
            raise
    return results


def _with_bar(config: RunConfig, collection: Collection, plan: Plan, bars: ProgressBar) -> RunResult:
    case = "".join(f" {key} {value}" for key, value in make_benchmark(config.benchmark).case_options().items())
    bar = bars.add_task(f"{config.benchmark.name}{case} · {config.label} · seed {config.seed}", total=None, state="")
    shown = 0.0

    def progress(now: Progress) -> None:
        nonlocal shown
        # Reading losses waits for the device; at every step that would slow the training down. The last step is always
        # shown.
        if time.perf_counter() - shown < _REFRESH and now.done < now.total:
            return
        shown = time.perf_counter()
        moved = now.recorder.n_events(accepted=True)
        losses = " ".join(f"{loss:.3f}" for loss in now.recorder.last_losses)
        bars.update(
            bar, total=now.total, completed=now.done, state=f"{losses}" + (f" · {moved} teleports" if moved else "")
        )

    def say(text: str) -> None:
        bars.console.print(text, highlight=False, soft_wrap=True)

    result = run(
        config,
        collection.run_path(config.name),
        checkpoint_every=plan.checkpoint_every,
        progress=progress,
        observers=make_logs(plan.log),
        loading=plan.loading,
        say=say,
        preparing=say,
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
    reference: str | None = None,
    form: Format = "text",
) -> None:
    """One set of tables per protocol, and what has to be said about them; figures if a directory is given.

    Args:
        runs: complete runs.
        console: where tables for the terminal go; other formats are printed plainly.
        others: more runs, in which to look for single-task baselines.
        figures: directory of the figures; None: none are drawn.
        reference: label of the group that differences are taken from; see ``paired_table``.
        form: how the tables are written.
    """
    comparisons = compare(runs, others=others)
    tables = _tables(comparisons, reference)
    said = [*(copy.text for copy in distinct([*runs, *others])[1]), *told_apart(comparisons)]
    said += _remarks(comparisons)
    if form == "text":
        for sentence in said:
            console.print(sentence, markup=False, highlight=False)
        for table in tables:
            console.print(as_rich(table))
    else:
        # Notes about the runs go where they do not end up in the table's file.
        # A table of numbers has no place for what is said below it.
        below = [note for table in tables for note in table.notes] if form == "csv" else []
        for sentence in dict.fromkeys([*said, *below]):
            print(sentence, file=sys.stderr)
        writer = {"markdown": as_markdown, "latex": as_latex}
        print(as_csv(tables) if form == "csv" else "\n".join(writer[form](table) for table in tables), end="")
    if figures is not None:
        from mtl_benchmarks.figures import draw_all

        for path in draw_all(runs, figures, others=others):
            console.print(f"figure: {path}", markup=False, soft_wrap=True)


def _remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """What the data of the benchmarks tell of their numbers, each once."""
    found = [text for each in comparisons for text in make_benchmark(each.config.benchmark).remarks()]
    return list(dict.fromkeys(found))


def _tables(comparisons: Sequence[Comparison], reference: str | None) -> list[Table]:
    """All tables; a reference is left out of those comparisons in which there is none."""
    checked_reference(comparisons, reference)
    found = []
    for comparison in comparisons:
        here = reference if any(group.label == reference for group in comparison.full) else None
        found += all_tables(comparison, reference=here)
    return found


def checked_reference(comparisons: Sequence[Comparison], reference: str | None) -> None:
    """Make sure that a reference is a label in one of the comparisons.

    Raises:
        UnknownNameError: it is none; lists those that exist.
    """
    labels = dict.fromkeys(group.label for comparison in comparisons for group in comparison.full)
    if reference is not None and reference not in labels:
        raise UnknownNameError("reference", reference, list(labels))


def told_apart(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence per benchmark whose runs stand in several tables: which option differs."""
    by_name: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_name.setdefault(comparison.config.benchmark.name, []).append(comparison)
    sentences = []
    for name, found in by_name.items():
        names = dict.fromkeys(key for comparison in found for key in comparison.told_apart)
        case = found[0].case_keys
        keys = [short_name(key) for key in names if short_name(key) not in case]
        if keys:
            sentences.append(
                f"{name}: {len(found)} tables, as runs that differ in {', '.join(keys)} do not compare with each other."
            )
    return sentences
