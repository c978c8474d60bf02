"""``mtl-bench ablate``: what of a teleport matters."""

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
    in_words_of,
    name_word,
    parse_seeds,
    read_request,
    shared_options,
)
from mtl_benchmarks.command_line.words import split
from mtl_benchmarks.commands.study import out_options, trained_title
from mtl_benchmarks.components.signatures import summary_of
from mtl_benchmarks.studies.variants import PARTS_OF_ABLATION, Variant, variants

__all__ = ["COMMAND"]

_MANY = ("--parts", "--tasks", "--seeds")


def _own_options(tasks: Sequence[str], method: str = "ls") -> dict[str, Sequence[Option]]:
    first, *rest = shared_options(tasks, None)
    return {
        "what is compared": [
            Option(
                "--method",
                str,
                "alone and under every teleport",
                method,
                shown="NAME",
                names=KINDS["method"].names,
            ),
            Option(
                "--parts",
                str,
                "what of a teleport is varied",
                tuple(PARTS_OF_ABLATION),
                many=True,
                shown="PART",
                names=lambda: list(PARTS_OF_ABLATION),
            ),
            first,
        ],
        "how": [*out_options("runs/ablation"), *rest],
    }


def _run(words: Sequence[str]) -> None:
    found = split(words, many=_MANY)
    name = benchmark_word("ablate", found)
    if name is None:
        print(_help("BENCHMARK", COMMAND.summary, _own_options(())), end="")
        return
    benchmark = chosen_of("benchmark", name, None, found)
    cls = benchmark_class(benchmark.choice.name)
    chosen: dict[KindName, Chosen] = {
        "benchmark": benchmark,
        "method": chosen_of("method", name_word(found, "--method", "ls"), None, found),
    }
    parts = Option("--parts", str, "", many=True)
    varied = parts.read(found.given["--parts"]) if "--parts" in found.given else tuple(PARTS_OF_ABLATION)
    rows = variants(varied)  # before a benchmark is made, which may take a while
    request = read_request(found, chosen, own=_own_options(cls.tasks, chosen["method"].choice.name))
    if found.help:
        about = f"{summary_of(cls)} Tasks: {', '.join(cls.tasks)}."
        print(_help(benchmark.choice.name, about, request.groups), end="")
        return
    with in_words_of(request.table):
        _ablate(request, rows)


def _help(name: str, about: str, groups: Mapping[str, Sequence[Option]]) -> str:
    shown = "digits" if name == "BENCHMARK" else name
    return layout(
        f"mtl-bench ablate {name} [options]",
        about=about,
        examples=(
            f"mtl-bench ablate {shown} --method fairgrad --method.alpha 2 --seeds 5 --processes 2",
            f"mtl-bench ablate {shown} --method ls --parts sharpness adapters --epochs 4",
        ),
        groups=groups,
    )


def _ablate(request: Request, chosen: Sequence[Variant]) -> None:
    from mtl_benchmarks.runs.rehearsal import rehearse
    from mtl_benchmarks.session import open_console
    from mtl_benchmarks.studies.ablation import ablate, ablation_table, first_kinds

    values, console = request.values, open_console()
    method = request.resolved("method")
    seeds = parse_seeds(values.get("--seeds", "5"))
    out = Path(values.get("--out", "runs/ablation"))
    cases = [(choice, case, request.settings(case)) for choice, case in request.cases()]
    rehearse(  # of all cases, before the first run begins
        [
            config
            for choice, _, settings in cases
            for config in first_kinds(choice, method, chosen, seed=seeds[0], settings=settings)
        ],
        out,
    )
    for choice, case, settings in cases:
        rows = ablate(
            choice,
            method,
            chosen,
            seeds=seeds,
            out=out,
            settings=settings,
            processes=values.get("--processes", 1),
            progress=lambda line: console.print(f"  {line}", highlight=False, markup=False),
        )
        shown = trained_title(choice, case.case_options())
        title = f"{shown}: {method.name}, and what of a teleport matters; {len(seeds)} seeds"
        console.print(ablation_table(rows, title=title))


COMMAND = Command(
    "ablate",
    "BENCHMARK [options]",
    "what of a teleport matters, beside a random move",
    _run,
    standing=available,
    offered=lambda: every_option(_own_options(()), kinds=("benchmark", "method")),
)
