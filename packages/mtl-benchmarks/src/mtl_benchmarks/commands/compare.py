"""``mtl-bench compare``: tables over finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.comparison import Format

__all__ = ["COMMAND"]


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.comparison import find_runs
    from mtl_benchmarks.session import open_console, print_report
    from mtl_benchmarks.storage.output import writable_directory

    parsed = COMMAND.parse(words, at_least=1, at_most=None)
    if parsed is None:
        return
    asked, others = find_runs(parsed.standing)
    figures = parsed.values.get("--figures")
    if figures is not None:  # before anything is drawn
        writable_directory("--figures", figures)
    print_report(
        asked,
        open_console(),
        others=others,
        figures=None if figures is None else Path(figures),
        reference=parsed.values.get("--reference"),
        form=parsed.values.get("--format", "text"),
    )


COMMAND = Command(
    "compare",
    "RUNS… [options]",
    "tables over finished runs, and figures",
    _run,
    options=(
        Option("--figures", str, "write figures to this directory", shown="DIR", path=True),
        Option("--format", Format, "of the tables", "text"),
        Option("--reference", str, "label of the method that differences are taken from", shown="LABEL"),
    ),
    takes_paths=True,
    examples=("mtl-bench compare runs", "mtl-bench compare runs/digits-* --figures figures --format markdown"),
)
