"""``mtl-bench run``: train on a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.benchmarks import available
from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.completion import every_option
from mtl_benchmarks.command_line.request import in_words_of
from mtl_benchmarks.command_line.run_words import own_options, parse_run

__all__ = ["COMMAND"]


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.ranks import joined
    from mtl_benchmarks.runs.runner import run
    from mtl_benchmarks.session import execute, open_console, planned, print_report

    with joined() as ranks:
        plan = parse_run(words)
        if plan is None:
            return
        if not ranks.is_first:
            for config in planned(plan):
                run(config, plan.out, loading=plan.loading)  # takes part in it, and touches no file
            return
        console = open_console()
        with ranks.leading(), in_words_of(plan.options):
            results = execute(plan, console)
    print_report(results, console)
    for result in results:
        # Plain lines, so that a path is never wrapped and other programs can read it.
        print(f"run: {result.directory}")


COMMAND = Command(
    "run",
    "BENCHMARK [options]",
    "train; with --help the options of the names given",
    _run,
    standing=available,
    offered=lambda: every_option(own_options({}, None, tasks=())),
)
