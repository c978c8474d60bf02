"""``mtl-bench figure``: a figure of one of the papers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.command_line.choosing import chosen_of
from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.completion import every_option
from mtl_benchmarks.command_line.help_text import layout
from mtl_benchmarks.command_line.kinds import KINDS, parse_choice
from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.command_line.request import (
    Request,
    choices,
    in_words_of,
    name_word,
    parse_seeds,
    read_request,
    shared_options,
)
from mtl_benchmarks.command_line.training_words import TrainingWords
from mtl_benchmarks.command_line.words import Words, split
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.paper_figures.registry import FIGURES, PaperFigure, find_figure
from mtl_core import InvalidInputError

if TYPE_CHECKING:
    from mtl_benchmarks.paper_figures.setting import Case

__all__ = ["COMMAND"]

_MANY = ("--methods", "--tasks", "--seeds")
_LENGTHS = ("--epochs", "--steps")


def _own_options(figure: PaperFigure | None, tasks: Sequence[str] = ()) -> dict[str, Sequence[Option]]:
    first, *rest = shared_options(tasks, None)
    default = _defaults(figure)
    drawn = [
        Option("--benchmark", str, "what is trained", default.get("--benchmark"), shown="NAME", names=available),
        Option(
            "--methods",
            str,
            "names; with options as fairgrad:alpha=2",
            figure and figure.methods,
            many=True,
            shown="NAME",
            names=KINDS["method"].names,
        ),
        first,
    ]
    if figure is None or figure.teleport:
        about = "what moves the parameters; with options as cost:max_per_epoch=none"
        shown = figure and figure.teleport
        drawn.append(Option("--teleport", str, about, shown, shown="NAME", names=KINDS["teleport"].names))
    if figure is None or figure.many:
        about = "the benchmark of many tasks"
        drawn.append(Option("--many", str, about, figure and figure.many, shown="NAME", names=available))
    return {
        "what is drawn": drawn,
        "how": [
            Option("--out", str, "folder of the picture, its numbers and its runs", "figures", shown="DIR", path=True),
            Option("--format", Literal["png", "pdf", "svg"], "of the picture", "png"),
            Option("--processes", int, "how many runs at a time", 1),
            Option(
                "--seeds",
                str,
                "how many from 0, or a list: 0,3,7",
                default.get("--seeds"),
                many=True,
                as_typed=True,
                shown="INTEGER",
            ),
            *rest,
        ],
    }


def _defaults(figure: PaperFigure | None) -> dict[str, str]:
    """Flag → word, of what a figure's command says unless told otherwise."""
    if figure is None:
        return {}
    return {flag: words[0] for flag, words in split(figure.words).given.items()}


def _completed(figure: PaperFigure, found: Words) -> Words:
    """The words as typed, with the figure's own for what was not said.

    Its size and length are for its own benchmark: where another is named, that one's stand.
    """
    own = split(figure.words).given
    if "--benchmark" in found.given:
        own = {flag: words for flag, words in own.items() if flag == "--seeds"}
    if any(flag in found.given for flag in _LENGTHS):
        own = {flag: words for flag, words in own.items() if flag not in _LENGTHS}
    return dataclasses.replace(found, given={**own, **found.given})


def _run(words: Sequence[str]) -> None:
    found = split(words, many=_MANY)
    if len(found.standing) > 1:
        raise InvalidInputError(f"`figure` must name one figure, got {' '.join(found.standing)}.")
    if not found.standing:
        if not found.help and found.given:
            raise InvalidInputError(f"`figure` must name a figure, got none. Valid: {', '.join(FIGURES)}.")
        print(_help() if found.help else _listed(), end="")
        return
    figure = find_figure(found.standing[0])
    typed = _completed(figure, found)
    benchmark = chosen_of("benchmark", name_word(typed, "--benchmark", None), None, typed)
    methods = [] if found.help else choices("method", typed, "--methods", figure.methods)
    named = name_word(typed, "--teleport", figure.teleport) if figure.teleport else ""
    teleport = parse_choice("teleport", named) if named and not found.help else None
    many = name_word(typed, "--many", figure.many) if figure.many else ""
    second = parse_choice("benchmark", many) if many and not found.help else None
    tasks = benchmark_class(benchmark.choice.name).tasks
    request = read_request(typed, {"benchmark": benchmark}, own=_own_options(figure, tasks))
    if found.help:
        print(_help(figure, request.groups), end="")
        return
    with in_words_of(request.table):
        _make(figure, request, methods, teleport, second)


def _listed() -> str:
    width = max(map(len, FIGURES))
    lines = [f"  {name:<{width}}  {figure.source}: {figure.title}" for name, figure in FIGURES.items()]
    return "\n".join(["mtl-bench figure NAME makes one of these; NAME --help says on what.", "", *lines]) + "\n"


def _help(figure: PaperFigure | None = None, groups: Mapping[str, Sequence[Option]] | None = None) -> str:
    if figure is None:
        name, about = "NAME", f"{COMMAND.summary}: {', '.join(FIGURES)}."
        notes: tuple[str, ...] = ()
    else:
        name, about = figure.name, f"{figure.source}: {figure.title}. In the paper: {figure.printed}."
        notes = (f"as it is: {figure.command}", f"as printed: mtl-bench figure {name} {figure.papers_words}")
    shown = "cost-3" if figure is None else name
    return layout(
        f"mtl-bench figure {name} [options]",
        about=about,
        examples=(
            f"mtl-bench figure {shown}",
            f"mtl-bench figure {shown} --benchmark digits --seeds 3 --processes 2 --format pdf --out pictures",
        ),
        groups=_own_options(None) if groups is None else groups,
        notes=notes,
    )


def _case_of(chosen: Choice, request: Request) -> Case:
    """The one case of a second benchmark, trained by its own protocol with what was typed."""
    from mtl_benchmarks.configuration.making import make_benchmark, resolve_benchmark
    from mtl_benchmarks.paper_figures.setting import Case

    cases = make_benchmark(resolve_benchmark(chosen)).cases()
    if len(cases) > 1:
        raise InvalidInputError(f"`--many` must be one problem, got the {len(cases)} of {chosen.name}.")
    choice = Choice(chosen.name, {**chosen.options, **cases[0].case_options()})
    values = request.values
    given = {name: values[f"--{name}"] for name in ("heads", "device", "threads") if f"--{name}" in values}
    own = cases[0].training
    # Kinds of optimiser, schedule and reporting are this benchmark's, unless they were typed.
    typed = {flag: (values[flag],) for flag in ("--optimizer", "--schedule", "--reported") if flag in values}
    training = TrainingWords.of(typed, own).applied(own, values)
    return Case(choice, {**given, "training": training})


def _make(
    figure: PaperFigure, request: Request, methods: Sequence[Choice], teleport: Choice | None, second: Choice | None
) -> None:
    from mtl_benchmarks.paper_figures.making import make_files
    from mtl_benchmarks.paper_figures.setting import Case, Setting
    from mtl_benchmarks.session import open_console

    values, console = request.values, open_console()
    out = Path(values.get("--out", "figures"))
    setting = Setting(
        cases=tuple(Case(choice, request.settings(case)) for choice, case in request.cases()),
        many=None if second is None else _case_of(second, request),
        methods=tuple(methods),
        teleport=teleport,
        seeds=parse_seeds(values["--seeds"]),
        runs=out / "runs",
        processes=values.get("--processes", 1),
        say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )
    drawn = make_files(figure, setting, out, values.get("--format", "png"))
    for line in (
        f"{figure.name}: {figure.title}. Here: {drawn.said}.",
        f"printed ({figure.source}): {figure.printed}.",
        f"picture: {drawn.picture}",
        f"numbers: {drawn.numbers}",
    ):
        print(line)  # plainly, so that no path is wrapped


COMMAND = Command(
    "figure",
    "NAME [options]",
    "a figure of one of the papers, on a benchmark of your choice",
    _run,
    standing=lambda: list(FIGURES),
    offered=lambda: every_option(_own_options(None), kinds=("benchmark",)),
)
