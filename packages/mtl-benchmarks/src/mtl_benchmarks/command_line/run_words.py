"""From the words of ``mtl-bench run`` to a plan of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.command_line.choosing import Chosen, chosen_of
from mtl_benchmarks.command_line.config_file import read_config
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
from mtl_benchmarks.command_line.training_words import TrainingWords
from mtl_benchmarks.command_line.words import Words, split
from mtl_benchmarks.comparison import find_runs
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.components.signatures import summary_of
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.ranks import current_ranks
from mtl_benchmarks.studies.matching_lengths import matching_lengths
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.checks import positive_int

__all__ = ["MANY", "USAGE", "Plan", "own_options", "parse_run"]

USAGE = "mtl-bench run BENCHMARK [options]"
MANY = ("--tasks", "--seeds", "--log")


@dataclass(frozen=True)
class Plan:
    """The runs that a command stands for.

    Attributes:
        configs: one per case of the benchmark and seed.
        out: the collection they are written to.
        baselines: whether the single-task runs of the same seeds belong to it.
        checkpoint_every: steps between checkpoints within an epoch.
        log: what every run is also written to, by the names of ``mtl_benchmarks.engine.logs``.
        loading: how data that is read sample by sample is read ahead.
        options: those of the command, by which errors about arguments are called.
    """

    configs: tuple[RunConfig, ...]
    out: Path
    baselines: bool
    checkpoint_every: int | None
    log: tuple[str, ...] = ()
    loading: Loading = Loading()
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        # Here, and not by the first run, which has its directory by then.
        if self.checkpoint_every is not None:
            positive_int("checkpoint_every", self.checkpoint_every)


def parse_run(arguments: Sequence[str]) -> Plan | None:
    """The plan behind the words after ``mtl-bench run``, or None if help was asked for and printed.

    Raises:
        UnknownNameError: a benchmark, method, teleport or option that does not exist; lists those that do.
        InvalidInputError: a value of the wrong type or out of range.
    """
    words = split(arguments, many=MANY)
    base = _base(words)
    with _in_words_of_the_file(words):
        return _parsed(words, base)


def _parsed(words: Words, base: RunConfig | None) -> Plan | None:
    name = base.benchmark.name if base is not None and not words.standing else benchmark_word("run", words)
    if name is None:
        print(_general_help(), end="")
        return None
    chosen = _chosen(words, name, base)
    cls = benchmark_class(chosen["benchmark"].choice.name)
    own = own_options(chosen, base, tasks=cls.tasks)
    request = read_request(words, chosen, own=own, base=base)
    if words.help:
        print(_help(request), end="")
        return None
    with in_words_of(request.table):
        return _plan(request)


@contextmanager
def _in_words_of_the_file(words: Words) -> Iterator[None]:
    """Let an error name the file behind ``--config``, unless it is about a word that was typed."""
    try:
        yield
    except InvalidInputError as error:
        options = {flag: given for flag, given in words.given.items() if flag != "--config"}
        typed = [*words.standing, *options, *(word for given in options.values() for word in given)]
        if "--config" in words.given and not any(word and word in str(error) for word in typed):
            error.args = (f"`--config` {words.given['--config'][0]!r}: {error}",)
        raise


def _base(words: Words) -> RunConfig | None:
    if "--config" not in words.given:
        return None
    if not words.given["--config"]:
        raise InvalidInputError("`--config` must be followed by the config.json of a run, got none.")
    return read_config(words.given["--config"][0])


def _chosen(words: Words, name: str, base: RunConfig | None) -> dict[KindName, Chosen]:
    """The benchmark, the method and the teleport, if there is one."""
    before = None if base is None else base.benchmark
    benchmark = chosen_of("benchmark", name if words.standing else None, before, words)
    cls = benchmark_class(benchmark.choice.name)
    if base is not None and cls is not benchmark_class(base.benchmark.name):
        raise InvalidInputError(
            f"`run` must name the benchmark of --config or none, got {name!r} and a run of {base.benchmark.name!r}."
        )
    method = name_word(words, "--method", None if base is not None else "ls")
    chosen: dict[KindName, Chosen] = {
        "benchmark": benchmark,
        "method": chosen_of("method", method, None if base is None else base.method, words),
    }
    teleport = name_word(words, "--teleport", None)
    moved = None if base is None else base.teleport
    if (teleport is None and moved is None) or (teleport is not None and teleport.lower() == "none"):
        _refuse_teleport_options(words)
        return chosen
    like = name_word(words, "--teleport.like", None) is not None
    chosen["teleport"] = chosen_of(
        "teleport", teleport, moved, words, defaults=cls.teleport_options, hidden=("length",) if like else ()
    )
    if like and KINDS["teleport"].find(chosen["teleport"].choice.name) is not KINDS["teleport"].find("random"):
        found = chosen["teleport"].choice.name
        raise InvalidInputError(f"`--teleport.like` must come with --teleport random, got {found!r}.")
    return chosen


def _refuse_teleport_options(words: Words) -> None:
    given = next((flag for flag in words.given if flag.startswith("--teleport.")), None)
    if given is not None:
        names = ", ".join(KINDS["teleport"].names())
        raise InvalidInputError(f"`{given}` must come with --teleport, got none. Valid: {names}.")


def own_options(
    chosen: Mapping[KindName, Chosen], base: RunConfig | None, *, tasks: Sequence[str]
) -> dict[str, list[Option]]:
    """The options of ``run`` that depend on no class."""
    method, teleport = chosen.get("method"), chosen.get("teleport")
    benchmark = chosen.get("benchmark")
    first, *rest = shared_options(tasks, base, has_networks=benchmark is None or "model" in benchmark.parts)
    seeds = "1" if base is None else f"{base.seed},"
    return {
        "what is run": [
            _name("method", "a weighting method, or package.module:Class", method.choice.name if method else "ls"),
            _name("teleport", "what moves the parameters in conflict", teleport.choice.name if teleport else "none"),
            Option("--teleport.like", str, "lengths of a random control, from runs with cost", shown="RUNS", path=True),
            first,
            Option(
                "--seeds", str, "how many from 0, or a list: 0,3,7", seeds, many=True, as_typed=True, shown="INTEGER"
            ),
            Option("--config", str, "the run in this config.json; other options override it", shown="FILE", path=True),
        ],
        "how": [
            Option("--out", str, "directory of the runs", "runs", shown="DIR", path=True),
            Option(
                "--baselines",
                Literal["single-task", "none"],
                "also train each task alone, for Δm",
                "single-task",
            ),
            Option("--checkpoint_every", int, "steps between checkpoints within an epoch"),
            Option("--workers", int, "processes that read data ahead, where it is read sample by sample", 0),
            Option("--prefetch", int, "batches that each of them reads ahead", 2),
            Option(
                "--log",
                Literal["csv", "tensorboard", "wandb"],
                "also write losses, weights and metrics to these",
                many=True,
            ),
            *rest,
        ],
    }


def _name(kind: KindName, about: str, default: str) -> Option:
    return Option(f"--{kind}", str, about, default, shown="NAME", names=KINDS[kind].names)


def _plan(request: Request) -> Plan:
    if request.base is not None and request.base.ranks != current_ranks().size:
        raise InvalidParameterError(
            f"`ranks` must be the number of processes, got {request.base.ranks} with {current_ranks().size}. Start "
            f"{request.base.ranks} by torchrun, or change it in a copy of the file."
        )
    values = request.values
    seed = "1" if request.base is None else f"{request.base.seed},"
    seeds = parse_seeds(values.get("--seeds", seed))
    method = request.resolved("method")
    measured = [] if "--teleport.like" not in values else find_runs([values["--teleport.like"]])[0]
    configs = []
    for option, case in request.cases():
        settings = request.settings(case)
        for one in seeds:
            teleport = request.resolved("teleport") if "teleport" in request.chosen else None
            if teleport is not None and "--teleport.like" in values:
                alone = RunConfig.resolve(option, method, None, seed=one, **settings)
                lengths = matching_lengths(
                    measured,
                    benchmark=alone.benchmark,
                    method=alone.method,
                    seed=one,
                    training=alone.training,
                    tasks=alone.tasks,
                )
                teleport = Choice(teleport.name, {**teleport.options, "length": lengths})
            configs.append(RunConfig.resolve(option, method, teleport, seed=one, **settings))
    return Plan(
        tuple(configs),
        Path(values.get("--out", "runs")),
        values.get("--baselines", "single-task") == "single-task",
        values.get("--checkpoint_every"),
        values.get("--log", ()),
        Loading(workers=values.get("--workers", 0), prefetch=values.get("--prefetch", 2)),
        tuple(request.table),
    )


def _examples(name: str, tasks: Sequence[str]) -> list[str]:
    return [
        f"mtl-bench run {name} --method fairgrad --method.alpha 2 --seeds 3",
        f"mtl-bench run {name} --method fairgrad --teleport cost --teleport.rank 5 --seeds 3",
        f"mtl-bench run {name} --optimizer sgd --optimizer.momentum 0.9 --lr 0.05 --schedule cosine",
        f"mtl-bench run {name} --tasks {' '.join(tasks[:2])} --baselines none --epochs 2",
        "mtl-bench run --config runs/NAME/config.json --seeds 0,1,2   # a run again, with other seeds",
    ]


_NOTES = (
    "Options after a dot belong to what stands before it; this help lists those of the names given.",
    "mtl-bench describe NAME says more about one; mtl-bench list shows all names.",
)


def _help(request: Request) -> str:
    picked = request.chosen["benchmark"]
    cls = benchmark_class(picked.choice.name)
    return layout(
        f"mtl-bench run {picked.choice.name} [options]",
        about=f"{summary_of(cls)} Tasks: {', '.join(cls.tasks)}.",
        examples=_examples(picked.choice.name, cls.tasks),
        groups=request.groups,
        notes=_NOTES,
    )


def _general_help() -> str:
    groups = {**own_options({}, None, tasks=()), "training": TrainingWords.of({}, None).options()}
    return layout(
        USAGE,
        about=f"Train on a benchmark: {', '.join(available())}, or package.module:Class of your own.",
        examples=_examples("digits", ("left", "right")),
        groups=groups,
        notes=("mtl-bench run BENCHMARK --help adds the options of that benchmark.", *_NOTES),
    )
