"""From the words of ``mtl-bench run`` to a plan of runs; options come typed from the classes' signatures."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from mtl_aggregators import available as available_methods
from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.comparison import find_runs
from mtl_benchmarks.components import (
    PARTS,
    TELEPORTS,
    make_benchmark,
    method_class,
    resolve_benchmark,
    resolve_method,
    teleport_class,
)
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.matching_lengths import matching_lengths
from mtl_benchmarks.options import Choice, option_defaults
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError
from mtl_core.extension import plain_name

__all__ = ["Plan", "parse_choice", "parse_run", "parse_seeds"]

_DEFAULT_PART = {"adapter": "lora", "trigger": "dominated"}


@dataclass(frozen=True)
class Plan:
    """The runs that a command stands for.

    Attributes:
        configs: one per case of the benchmark and seed.
        out: the collection they are written to.
        baselines: whether the single-task runs of the same seeds belong to it.
        checkpoint_every: steps between checkpoints within an epoch.
    """

    configs: tuple[RunConfig, ...]
    out: Path
    baselines: bool
    checkpoint_every: int | None


@dataclass(frozen=True)
class _Selection:
    """The names chosen on the command line, on which the set of options depends."""

    benchmark: str
    method: str
    teleport: str
    parts: dict[str, str]
    like: str | None
    rest: list[str]


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"3"`` → 0, 1, 2; ``"0,4,7"`` or ``"[0, 4, 7]"`` → these.

    Raises:
        InvalidParameterError: it is neither.

    Example:
        >>> parse_seeds("3"), parse_seeds("5,")
        ((0, 1, 2), (5,))
    """
    words = [word.strip() for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    numbers = [word for word in words if word]
    if not numbers or not all(word.isdecimal() for word in numbers):
        raise InvalidParameterError(f"`seeds` must be a number of seeds or a list such as 0,1,2, got {text!r}.")
    listed = tuple(int(word) for word in numbers)
    if len(words) > 1 or text.strip().startswith("["):
        return tuple(dict.fromkeys(listed))
    if listed[0] == 0:
        raise InvalidParameterError("`seeds` must be at least 1, got 0. For the seed 0 alone say 1 or 0,")
    return tuple(range(listed[0]))


def parse_choice(text: str) -> Choice:
    """``"digits"`` or ``"digits:shift=2,width=4"`` → the choice; numbers, ``true``, ``false`` and ``none`` are read.

    ``package.module:Class`` is a name, and may have options too.

    Raises:
        InvalidParameterError: an option without a value.

    Example:
        >>> parse_choice("cagrad:c=0.5").options
        {'c': 0.5}
        >>> parse_choice("mine.methods:Mine:power=2")
        Choice(name='mine.methods:Mine', options={'power': 2})
    """
    name, colon, listed = text.partition(":")
    cls, _, further = listed.partition(":")
    # Behind a registered name stand options, and a word without a value is a mistake in them.
    if cls.isidentifier() and plain_name(name) not in (*available(), *available_methods()):
        name, listed = f"{name}{colon}{cls}", further
    options: dict[str, Any] = {}
    for word in filter(None, listed.split(",")):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidParameterError(f"options must be like name:option=value,option=value, got {text!r}.")
        options[key] = _plain_value(value)
    return Choice(name, options)


def _plain_value(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def parse_run(arguments: Sequence[str]) -> Plan | None:
    """The plan behind the words after ``mtl-bench run``, or None if help was asked for and printed.

    Raises:
        UnknownNameError: a benchmark, method, teleport or option that does not exist; lists those that do.
        InvalidInputError: a value of the wrong type or out of range.
    """
    chosen = _select(list(arguments))
    parser = _parser(chosen)
    if "-h" in chosen.rest or "--help" in chosen.rest:
        parser.print_help()
        return None
    values = _parse(parser, chosen.rest)
    benchmark = resolve_benchmark(Choice(chosen.benchmark, values.pop("benchmark", {})))
    method = Choice(chosen.method, values.pop("method", {}))
    given = values.pop("teleport", {})
    for part, name in chosen.parts.items():
        given[part] = Choice(name, given.get(part) or {})
    seeds = parse_seeds(values.pop("seeds"))
    out, every = Path(values.pop("out")), values.pop("checkpoint_every")
    baselines = values.pop("baselines") == "single-task"
    measured = [] if chosen.like is None else find_runs([chosen.like])[0]
    configs = []
    for case in make_benchmark(benchmark).cases():
        option = Choice(benchmark.name, {**benchmark.options, **case.case_options()})
        for seed in seeds:
            if chosen.like is not None:
                given["length"] = matching_lengths(
                    measured, benchmark=resolve_benchmark(option), method=resolve_method(method), seed=seed
                )
            teleport = None if chosen.teleport == "none" else Choice(chosen.teleport, dict(given))
            configs.append(RunConfig.resolve(option, method, teleport, seed=seed, **values))
    return Plan(tuple(configs), out, baselines, every)


def _select(words: list[str]) -> _Selection:
    """Take the names out of the command line, and check them."""
    flags = {"method": "ls", "teleport": "none", "teleport.like": ""}
    parts: dict[str, str] = {}
    rest: list[str] = []
    positional: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        key, equals, value = word.partition("=")
        name = key.removeprefix("--")
        if key.startswith("--") and (name in flags or (name.removeprefix("teleport.") in PARTS and "." in name)):
            if not equals:
                index += 1
                if index == len(words) or words[index].startswith("--"):
                    raise InvalidInputError(f"`{key}` must be followed by a name, got none.")
                value = words[index]
            if name in flags:
                flags[name] = value
            else:
                parts[name.removeprefix("teleport.")] = value
        elif key.startswith("-"):
            rest.append(word)
            if key.startswith("--") and not equals and key != "--help" and index + 1 < len(words):
                index += 1
                rest.append(words[index])
        else:
            positional.append(word)
        index += 1
    if not positional:
        raise InvalidInputError(f"`run` must name a benchmark, got none. Valid: {', '.join(available())}.")
    if len(positional) > 1:
        raise InvalidInputError(f"`run` must name one benchmark, got {' '.join(positional)}.")
    benchmark_class(positional[0])
    method_class(flags["method"])
    if plain_name(flags["teleport"]) in (*TELEPORTS, "none"):
        flags["teleport"] = plain_name(flags["teleport"])
    if flags["teleport"] != "none":
        known = option_defaults(teleport_class(flags["teleport"]), PARTS)
        own = benchmark_class(positional[0]).teleport_options
        for part in PARTS:
            if part in known and part not in parts:
                parts[part] = own.get(part, _DEFAULT_PART[part])
        for part, value in parts.items():
            if part not in known:
                raise UnknownNameError(f"option of teleport {flags['teleport']!r}", part, sorted(known))
            if value not in PARTS[part]:
                raise UnknownNameError(part, value, PARTS[part])
        rest = [_spell_out(word, known, parts) for word in rest]
    elif parts:
        raise InvalidInputError(f"`--teleport.{next(iter(parts))}` must come with --teleport cost or random, got none.")
    if flags["teleport.like"] and flags["teleport"] != "random":
        raise InvalidInputError(f"`--teleport.like` must come with --teleport random, got {flags['teleport']!r}.")
    return _Selection(positional[0], flags["method"], flags["teleport"], parts, flags["teleport.like"] or None, rest)


def _spell_out(word: str, known: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """An option of a part needs the part's name only where it is not unique: ``--teleport.rank``."""
    name = word.partition("=")[0].removeprefix("--teleport.")
    if not word.startswith("--teleport.") or "." in name or name in known:
        return word
    owners = [part for part, chosen in parts.items() if name in option_defaults(PARTS[part][chosen])]
    return word.replace("--teleport.", f"--teleport.{owners[0]}.", 1) if len(owners) == 1 else word


def _parser(chosen: _Selection) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"mtl-bench run {chosen.benchmark}",
        description="Names: --method NAME (default ls), --teleport cost|random|none, --teleport.adapter NAME, "
        "--teleport.trigger NAME; a benchmark, method or teleport of one's own is package.module:Class. "
        "--teleport.like RUNS gives a random control the lengths of a run with cost. "
        "The options below are those of the names given.",
        exit_on_error=False,
    )
    parser.add_argument("--seeds", type=str, default="1", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--epochs", type=int | None, help="default: the benchmark's protocol")
    parser.add_argument("--batch_size", type=int | None, help="default: the benchmark's protocol")
    parser.add_argument("--lr", type=float | None, help="default: the benchmark's protocol")
    parser.add_argument(
        "--heads", type=Literal["unit", "weighted"], default="unit", help="which gradient the heads follow"
    )
    parser.add_argument("--max_norm", type=float | None, help="clip the shared gradient to this norm")
    parser.add_argument("--tasks", type=list[str] | None, help="train these tasks only, e.g. [left]")
    parser.add_argument("--device", type=str, default="cpu", help="as torch names it")
    parser.add_argument("--threads", type=int, default=1, help="torch's CPU threads")
    parser.add_argument("--out", type=str, default="runs", help="directory of the runs")
    parser.add_argument("--checkpoint_every", type=int | None, help="steps between checkpoints within an epoch")
    parser.add_argument(
        "--baselines",
        type=Literal["single-task", "none"],
        default="single-task",
        help="also train each task alone, for Δm",
    )
    groups: list[tuple[str, type, dict[str, Any]]] = [
        ("benchmark", benchmark_class(chosen.benchmark), {}),
        ("method", method_class(chosen.method), {}),
    ]
    if chosen.teleport != "none":
        groups.append(("teleport", teleport_class(chosen.teleport), dict(PARTS)))
        groups += [(f"teleport.{part}", PARTS[part][name], {}) for part, name in chosen.parts.items()]
    for key, cls, parts in groups:
        wanted = {name for name in option_defaults(cls, parts) if name not in parts}
        if key == "teleport" and chosen.like is not None:
            wanted -= {"length"}
        skip = set(_constructor_names(cls)) - wanted
        parser.add_class_arguments(cls, key, skip=skip, as_group=False)
        if key == "teleport":
            own = benchmark_class(chosen.benchmark).teleport_options
            parser.set_defaults({f"teleport.{name}": value for name, value in own.items() if name in wanted})
    return parser


def _constructor_names(cls: type) -> list[str]:
    import inspect

    return [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]


def _parse(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    listed = [flag for flag in known if flag not in ("--help", "--print_shtab") and not flag.endswith("+")]
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise UnknownNameError("option", flag, ["--method", "--teleport", *listed])
    noise = io.StringIO()
    try:
        with contextlib.redirect_stderr(noise):
            parsed = parser.parse_args(list(words))
    except argparse.ArgumentError as error:
        text = " ".join(str(error).split()).replace('Parser key "', "`--").replace('":', "`:")
        raise InvalidInputError(text) from None
    values: dict[str, Any] = parsed.as_dict()
    return values
