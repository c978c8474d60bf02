"""What ``run``, ``study`` and ``ablate`` share: a benchmark, what is chosen beside it, and how it is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.command_line.choosing import Chosen
from mtl_benchmarks.command_line.kinds import KindName, parse_choice, parse_part
from mtl_benchmarks.command_line.option import Option, read_options, refuse_unknown
from mtl_benchmarks.command_line.training_words import TrainingWords
from mtl_benchmarks.command_line.words import Words
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import MODELS, benchmark_parts, make_benchmark, resolve_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError
from mtl_core.checks import seed as checked_seed

__all__ = [
    "Request",
    "benchmark_word",
    "choices",
    "in_words_of",
    "name_word",
    "parse_seeds",
    "read_request",
    "shared_options",
]


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"3"`` → 0, 1, 2; ``"0,4,7"`` or ``"[0, 4, 7]"`` → these.

    Raises:
        InvalidParameterError: it is neither, or a seed has more than 32 bits.

    Example:
        >>> parse_seeds("3"), parse_seeds("5,")
        ((0, 1, 2), (5,))
    """
    words = [word.strip() for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    numbers = [word for word in words if word]
    if not numbers or not all(re.fullmatch("[0-9]{1,15}", word) for word in numbers):
        raise InvalidParameterError(f"`--seeds` must be a number of seeds or a list such as 0,1,2, got {text!r}.")
    listed = tuple(checked_seed("--seeds", int(word)) for word in numbers)
    if len(words) > 1 or text.strip().startswith("["):
        return tuple(dict.fromkeys(listed))
    if listed[0] == 0:
        raise InvalidParameterError("`--seeds` must be at least 1, got 0. For the seed 0 alone say 1 or 0,")
    if listed[0] > 10_000:
        raise InvalidParameterError(
            f"`--seeds` must be at most 10000, got {listed[0]} seeds. For the seed {listed[0]} alone say {listed[0]},"
        )
    return tuple(range(listed[0]))


def shared_options(tasks: Sequence[str], base: RunConfig | None, *, has_networks: bool = True) -> list[Option]:
    """Options of everything that trains, beside those of the protocol.

    Args:
        tasks: of the benchmark.
        base: a run whose configuration the options are laid over.
        has_networks: whether the benchmark lets its network be chosen; else help leaves out what is about networks.
    """
    return [
        Option("--tasks", str, "train these tasks only", many=True, shown="TASK", names=lambda: tasks),
        Option(
            "--heads",
            Literal["unit", "weighted"],
            "follow their own losses, or those losses weighted by the method",
            base.heads if base else "unit",
        ),
        Option("--device", str, "as torch names it", base.device if base else "cpu"),
        Option("--threads", int, "torch's CPU threads", base.threads if base else 1),
        Option(
            "--baseline_model",
            str,
            "network of the single-task runs; with options as NAME:OPTION=VALUE",
            base.baseline_model.name if base and base.baseline_model else None,
            shown="NAME",
            names=MODELS.names,
            hidden=not has_networks,
        ),
    ]


@dataclass(frozen=True)
class Request:
    """A benchmark, what was chosen beside it, and every value that was typed.

    Attributes:
        benchmark: resolved.
        chosen: kind → the class chosen for it; the benchmark among them.
        training: the options of the protocol.
        base: the run whose configuration the options are laid over.
        groups: heading → options, as help shows them.
        values: flag → value, of those that were given.
    """

    benchmark: Choice
    chosen: Mapping[KindName, Chosen]
    training: TrainingWords
    base: RunConfig | None
    groups: Mapping[str, Sequence[Option]]
    values: Mapping[str, Any]

    def cases(self) -> list[tuple[Choice, Benchmark]]:
        """The cases of the benchmark, each as a choice and as an object."""
        return [
            (Choice(self.benchmark.name, {**self.benchmark.options, **case.case_options()}), case)
            for case in make_benchmark(self.benchmark).cases()
        ]

    def settings(self, case: Benchmark) -> dict[str, Any]:
        """What ``RunConfig.resolve`` takes beside names and seed."""
        base: dict[str, Any] = {}
        protocol = case.training
        if self.base is not None:
            names = ("tasks", "heads", "device", "threads", "baseline_model")
            base = {name: vars(self.base)[name] for name in names}
            protocol = self.base.training
        given = {
            name: self.values[f"--{name}"]
            for name in ("tasks", "heads", "device", "threads")
            if f"--{name}" in self.values
        }
        if "--baseline_model" in self.values:
            given["baseline_model"] = self._baseline_model(self.values["--baseline_model"])
        return {**base, **given, "training": self.training.applied(protocol, self.values)}

    def _baseline_model(self, text: str) -> Choice | None:
        """The network of single-task runs as typed; ``none``: that of the run, whatever the base has."""
        if text.lower() == "none":
            return None
        return parse_part(benchmark_parts(benchmark_class(self.benchmark.name))["model"], text)

    def resolved(self, kind: KindName) -> Choice:
        """What was chosen of a kind, with the options that were typed."""
        return self.chosen[kind].resolved(self.values)

    @property
    def table(self) -> list[Option]:
        """All options."""
        return [option for options in self.groups.values() for option in options]


def benchmark_word(command: str, words: Words) -> str | None:
    """The word that names the benchmark; None where help is asked for without one.

    Raises:
        InvalidInputError: there is none, or more than one.
    """
    if len(words.standing) > 1:
        raise InvalidInputError(f"`{command}` must name one benchmark, got {' '.join(words.standing)}.")
    if not words.standing and not words.help:
        raise InvalidInputError(f"`{command}` must name a benchmark, got none. Valid: {', '.join(available())}.")
    return words.standing[0] if words.standing else None


def name_word(words: Words, flag: str, default: str | None) -> str | None:
    """The name behind an option, or the default where it was not given.

    Raises:
        InvalidInputError: nothing stands behind it.
    """
    if flag not in words.given:
        return default
    if not words.given[flag]:
        raise InvalidInputError(f"`{flag}` must be followed by a name, got none.")
    return words.given[flag][0]


def choices(kind: KindName, words: Words, flag: str, default: Sequence[str]) -> list[Choice]:
    """What is named behind an option that takes several names; ``none`` is one where a teleport is.

    Commands ask for this before a benchmark is made, which may look at thousands of files.

    Raises:
        UnknownNameError: a name or option that does not exist.
        InvalidInputError: there is no name, or a value that is none.
    """
    option = Option(flag, str, "", many=True)
    named = option.read(words.given[flag]) if flag in words.given else default
    return [
        Choice("none") if kind == "teleport" and text.lower() == "none" else parse_choice(kind, text) for text in named
    ]


def _refuse_unknown_tasks(words: Words, name: str) -> None:
    tasks = benchmark_class(name).tasks
    for task in Option("--tasks", str, "", many=True).read(words.given["--tasks"]):
        if task not in tasks:
            raise UnknownNameError(f"task of benchmark {name!r}", task, tasks)


def read_request(
    words: Words,
    chosen: Mapping[KindName, Chosen],
    *,
    own: Mapping[str, Sequence[Option]],
    base: RunConfig | None = None,
) -> Request:
    """Every option, read.

    Args:
        words: as typed; flags that stand for others are replaced in them.
        chosen: what was chosen by name, the benchmark first.
        own: heading → the command's own options.
        base: a run whose configuration the options are laid over.

    Raises:
        UnknownNameError: an option that does not exist.
        InvalidInputError: a value that is none.
    """
    given: dict[str, tuple[str, ...]] = {}
    for flag, typed in words.given.items():
        spelt = flag
        for each in chosen.values():
            spelt = each.spelt_out(spelt)
        spelt = TrainingWords.spelt_out(spelt)
        if spelt in given:
            raise InvalidInputError(f"`{spelt}` must be given once, got {flag} beside it, which is the same option.")
        given[spelt] = typed
    picked = chosen["benchmark"]
    if "--tasks" in words.given and not words.help:
        _refuse_unknown_tasks(words, picked.choice.name)
    own_options = picked.options()
    flags = {option.flag for option in own_options}
    # The benchmark's options first, and only these: what the protocol's defaults are, and with them the options that
    # can be read next, is known from the benchmark that is made of them.
    early = {
        flag: typed for flag, typed in given.items() if flag in flags or flag.startswith(("--benchmark.", "--model."))
    }
    lenient = [option for option in own_options if option.flag in early] if words.help else own_options
    refuse_unknown(early, flags)
    benchmark, protocol = _made(picked, read_options(early, lenient), own_options, help_only=words.help)
    training = TrainingWords.of(given, base.training if base is not None else protocol)
    moved = benchmark_class(picked.choice.name).teleport_options
    groups: dict[str, Sequence[Option]] = {**own, "training": training.options()}
    for kind, each in chosen.items():
        options = own_options if kind == "benchmark" else each.options(defaults=moved if kind == "teleport" else None)
        groups[f"{kind} {each.choice.name}"] = options
    # From here on all names are known, so that whatever is left is a mistake.
    table = [option for options in groups.values() for option in options]
    if words.help:
        refuse_unknown(given, [option.flag for option in table])
        return Request(benchmark, chosen, training, base, groups, {})
    return Request(benchmark, chosen, training, base, groups, read_options(given, table))


def _made(
    picked: Chosen, values: Mapping[str, Any], options: Sequence[Option], *, help_only: bool
) -> tuple[Choice, Training | None]:
    """The benchmark's resolved choice, and its protocol; for help neither has to be complete."""
    typed = picked.resolved(values)
    try:
        with in_words_of(options):
            benchmark = resolve_benchmark(typed)
            return benchmark, make_benchmark(benchmark).training
    except InvalidInputError:
        if help_only:
            return typed, None
        raise


@contextmanager
def in_words_of(options: Sequence[Option]) -> Iterator[None]:
    """Let an error about an argument name the option by which it was given.

    Constructors say ```alpha` must be positive``; whoever typed ``--method.alpha`` looks for that.
    """
    try:
        yield
    except InvalidParameterError as error:
        text = str(error)
        name = text[1:].partition("`")[0] if text.startswith("`") else ""
        # Only where one option can be meant: `alpha` may be an option of the method and of the teleport.
        flags = [option.flag for option in options if option.flag.rpartition(".")[2].removeprefix("--") == name]
        if len(flags) != 1 or type(error) is not InvalidParameterError:
            raise
        raise InvalidParameterError(f"`{flags[0]}`{text[len(name) + 2 :]}") from None
