"""``mtl-bench verdict``: what a study says, from the records of its runs."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.command_line.command import Command

__all__ = ["COMMAND"]


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.session import open_console
    from mtl_benchmarks.studies.records import read_records
    from mtl_benchmarks.studies.tables import print_study

    parsed = COMMAND.parse(words, at_least=1, at_most=None)
    if parsed is None:
        return
    print_study(read_records(parsed.standing), open_console())


COMMAND = Command(
    "verdict",
    "RECORDS…",
    "what studies show, from the records of their runs, all tests together",
    _run,
    takes_paths=True,
    examples=("mtl-bench verdict qm9.csv", "mtl-bench verdict qm9-0to4.csv qm9-5to9.csv digits.csv"),
)
