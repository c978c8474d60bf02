"""``mtl-bench study``: methods beside each other over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.command_line.choosing import Chosen, chosen_of
from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.completion import every_option
from mtl_benchmarks.command_line.help_text import layout
from mtl_benchmarks.command_line.kinds import KINDS, KindName
from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.command_line.request import (
    Request,
    benchmark_word,
    choices,
    in_words_of,
    parse_seeds,
    read_request,
    shared_options,
)
from mtl_benchmarks.command_line.words import split
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.components.signatures import summary_of

__all__ = ["COMMAND", "out_options", "trained_title"]

_MANY = ("--methods", "--teleports", "--tasks", "--seeds", "--known")


def out_options(out: str) -> list[Option]:
    """Where runs are written, and how many at a time."""
    return [
        Option("--out", str, "directory of the runs", out, shown="DIR", path=True),
        Option("--processes", int, "how many runs at a time", 1),
        Option("--seeds", str, "how many from 0, or a list: 0,3,7", "5", many=True, as_typed=True, shown="INTEGER"),
    ]


def _own_options(tasks: Sequence[str]) -> dict[str, Sequence[Option]]:
    first, *rest = shared_options(tasks, None)
    return {
        "what is compared": [
            Option(
                "--methods",
                str,
                "names; with options as fairgrad:alpha=2",
                "ls",
                many=True,
                shown="NAME",
                names=KINDS["method"].names,
            ),
            Option(
                "--teleports",
                str,
                "none, cost, its controls random and memory, or others",
                "none",
                many=True,
                shown="NAME",
                names=lambda: ["none", *KINDS["teleport"].names()],
            ),
            first,
        ],
        "how": [
            *out_options("runs/study"),
            Option("--csv", str, "write one line per run to this file, as runs end", shown="FILE", path=True),
            Option(
                "--known",
                str,
                "tables of earlier studies; runs without teleports that stand there are not trained again",
                many=True,
                shown="FILE",
                path=True,
            ),
            *rest,
        ],
    }


def _run(words: Sequence[str]) -> None:
    found = split(words, many=_MANY)
    name = benchmark_word("study", found)
    if name is None:
        print(_help({}, "BENCHMARK", _own_options(()), COMMAND.summary), end="")
        return
    benchmark = chosen_of("benchmark", name, None, found)
    cls = benchmark_class(benchmark.choice.name)
    # First of all: to make a benchmark may take a while.
    methods = [] if found.help else choices("method", found, "--methods", ("ls",))
    teleports = [] if found.help else choices("teleport", found, "--teleports", ("none",))
    request = read_request(found, {"benchmark": benchmark}, own=_own_options(cls.tasks))
    if found.help:
        about = f"{summary_of(cls)} Tasks: {', '.join(cls.tasks)}."
        print(_help(request.chosen, benchmark.choice.name, request.groups, about), end="")
        return
    with in_words_of(request.table):
        _study(request, methods, teleports)


def _help(chosen: Mapping[KindName, Chosen], name: str, groups: Mapping[str, Sequence[Option]], about: str) -> str:
    shown = name if chosen else "digits"
    return layout(
        f"mtl-bench study {name} [options]",
        about=about,
        examples=(
            f"mtl-bench study {shown} --methods ls mgda fairgrad:alpha=2 --seeds 5 --processes 2",
            f"mtl-bench study {shown} --methods ls fairgrad --teleports none cost:rank=3 random --epochs 4",
        ),
        groups=groups,
        notes=("Parts of a teleport and their options: cost:adapter=dense,trigger=majority,trigger.fraction=0.75.",),
    )


def trained_title(choice: Choice, case: Mapping[str, object]) -> str:
    """A benchmark and its case, as titles of tables call them."""
    return " ".join([choice.name, *(f"{key} {value}" for key, value in case.items())])


def _study(request: Request, methods: Sequence[Choice], teleports: Sequence[Choice]) -> None:
    from mtl_benchmarks.runs.rehearsal import rehearse
    from mtl_benchmarks.runs.runner import RunResult
    from mtl_benchmarks.session import open_console, print_report
    from mtl_benchmarks.studies.controls import CONTROLS
    from mtl_benchmarks.studies.records import Record, read_records, table_path, write_records
    from mtl_benchmarks.studies.study import first_kinds, study
    from mtl_benchmarks.studies.tables import print_study

    values, console = request.values, open_console()
    seeds = parse_seeds(values.get("--seeds", "5"))
    table = table_path("--csv", values["--csv"]) if "--csv" in values else None
    known = read_records(values["--known"]) if "--known" in values else []
    records: list[Record] = []
    done = 0

    def recorded(own: Sequence[Record]) -> None:
        if table is not None and own:
            write_records(table, [*records, *own], durable=False)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(result: RunResult) -> None:
        nonlocal done
        done += 1
        line = f"  {done}: {result.config.label}, seed {result.config.seed}: {result.seconds:.1f} s"
        console.print(line, highlight=False, markup=False)

    cases = [(choice, request.settings(case)) for choice, case in request.cases()]
    out = Path(values.get("--out", "runs/study"))
    rehearse(  # of all cases, before the first run begins
        [
            config
            for choice, settings in cases
            for config in first_kinds(choice, methods, seed=seeds[0], teleports=teleports, settings=settings)
        ],
        out,
        say=say,
    )
    for choice, settings in cases:
        found = study(
            choice,
            methods,
            seeds=seeds,
            out=out,
            teleports=teleports,
            settings=settings,
            processes=values.get("--processes", 1),
            progress=progress,
            say=say,
            recorded=recorded,
            known=known,
        )
        shown = [run for run in found.runs if run.config.teleport is None or run.config.teleport.name not in CONTROLS]
        if shown:
            print_report(shown, console)
        records += found.records
    if table is not None:
        write_records(table, records)
    print_study(records, console)
    if table is not None:
        console.print(f"records: {values['--csv']}", highlight=False, markup=False)


COMMAND = Command(
    "study",
    "BENCHMARK [options]",
    "methods beside each other, alone and with teleports",
    _run,
    standing=available,
    offered=lambda: every_option(_own_options(()), kinds=("benchmark",)),
)
