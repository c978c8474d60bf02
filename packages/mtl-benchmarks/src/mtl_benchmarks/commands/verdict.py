"""``mtl-bench verdict``: what a study says, from the records of its runs."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.kinds import KINDS, parse_choice
from mtl_benchmarks.command_line.option import Option
from mtl_core import InvalidInputError

__all__ = ["COMMAND"]


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.configuration.naming import method_label
    from mtl_benchmarks.session import open_console
    from mtl_benchmarks.studies.records import read_records
    from mtl_benchmarks.studies.tables import print_methods, print_study

    parsed = COMMAND.parse(words, at_least=1, at_most=None)
    if parsed is None:
        return
    references, methods = (
        [method_label(parse_choice("method", text)) for text in parsed.values.get(flag, ())]
        for flag in ("--against", "--methods")
    )
    if methods and not references:
        raise InvalidInputError(
            f"`--methods` must stand beside --against, got {', '.join(methods)} alone. Name what they are tested "
            "against: --against ls."
        )
    records, console = read_records(parsed.standing), open_console()
    if references:
        known = {record.method for record in records if not record.task}
        for flag, names in (("--against", references), ("--methods", methods)):
            if unknown := [name for name in names if name not in known]:
                raise InvalidInputError(
                    f"`{flag}` must name methods of the tables, which have {', '.join(sorted(known))}, got "
                    f"{', '.join(unknown)}. Give the table that has them, too."
                )
        print_methods(records, console, references=references, methods=methods)
    else:
        print_study(records, console)


COMMAND = Command(
    "verdict",
    "RECORDS… [options]",
    "what studies show, from the records of their runs, all tests together; methods are named as for study",
    _run,
    options=(
        Option(
            "--against",
            str,
            "test methods without teleports against these",
            many=True,
            shown="NAME",
            names=KINDS["method"].names,
        ),
        Option(
            "--methods",
            str,
            "which of them are tested (all others)",
            many=True,
            shown="NAME",
            names=KINDS["method"].names,
        ),
    ),
    takes_paths=True,
    examples=(
        "mtl-bench verdict qm9.csv",
        "mtl-bench verdict qm9-0to4.csv qm9-5to9.csv digits.csv",
        "mtl-bench verdict digits.csv --against ls mgda --methods fairgrad:alpha=2",
    ),
)
