"""``mtl-bench report``: one HTML page about finished runs."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.option import Option

__all__ = ["COMMAND"]


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.html_report import write_report

    parsed = COMMAND.parse(words, at_least=1, at_most=None)
    if parsed is None:
        return
    out, reference = parsed.values.get("--out"), parsed.values.get("--reference")
    print(f"report: {write_report(parsed.standing, out, reference=reference)}")


COMMAND = Command(
    "report",
    "RUNS… [options]",
    "one HTML page about finished runs: tables, figures, protocol, commands",
    _run,
    options=(
        Option("--out", str, "the file; default: report.html in the first directory", shown="FILE", path=True),
        Option("--reference", str, "label of the method that differences are taken from", shown="LABEL"),
    ),
    takes_paths=True,
    examples=("mtl-bench report runs", "mtl-bench report runs --out page.html --reference ls"),
)
