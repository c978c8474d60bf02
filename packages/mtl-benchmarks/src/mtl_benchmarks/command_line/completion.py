"""What a shell is told: every command, name and option, as a script that does without Python.

The script is made once, of the tables that the commands themselves are read by. It knows the classes that are there
when it is made, and offers the options of all of them: which ones belong to the names on the line, a shell that does
not start Python cannot know.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import shtab

from mtl_benchmarks.command_line.choosing import choose
from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.kinds import KINDS, KindName
from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.command_line.training_words import TrainingWords
from mtl_benchmarks.protocol.optimizers import optimizer_names
from mtl_benchmarks.protocol.outcome import REPORTED
from mtl_benchmarks.protocol.schedules import SCHEDULES
from mtl_core import InvalidInputError

__all__ = ["every_option", "script"]


def every_option(
    own: Mapping[str, Sequence[Option]], *, kinds: Iterable[KindName] = ("benchmark", "method", "teleport")
) -> list[Option]:
    """The options of a command with those of all classes that may be named in it, each flag once.

    Args:
        own: heading → the command's own options.
        kinds: whose options belong to it.
    """
    found = [option for options in own.values() for option in options]
    for optimizer in optimizer_names():
        found += TrainingWords(None, optimizer, "constant", "last").options()
    for schedule in SCHEDULES:
        found += TrainingWords(None, "adam", schedule.kind, "last").options()
    for reported in REPORTED:
        found += TrainingWords(None, "adam", "constant", reported.kind).options()
    for kind in kinds:
        for name in KINDS[kind].names():
            try:
                found += choose(kind, name, parts={}).options()
            except InvalidInputError:  # one broken package must not hide all other names
                continue
    return list({option.flag: option for option in reversed(found) if not option.hidden}.values())[::-1]


def script(shell: str, commands: Sequence[Command]) -> str:
    """The script for a shell.

    Args:
        shell: ``"bash"``, ``"zsh"`` or ``"fish"``.
        commands: all of them.
    """
    parser = argparse.ArgumentParser("mtl-bench", description="Multi-task benchmarks.")
    parser.add_argument("--version", action="store_true", help="versions of the packages")
    below = parser.add_subparsers(dest="command")
    for command in commands:
        own = below.add_parser(command.name, help=command.summary, description=command.summary)
        if command.standing is not None or command.takes_paths:
            word = own.add_argument("word", nargs="*" if command.takes_paths else "?", help=command.usage)
            word.choices = None if command.standing is None else list(command.standing())
            if command.takes_paths:
                _completes(word, shtab.FILE)
        for option in command.options if command.offered is None else command.offered():
            action = own.add_argument(
                option.flag, nargs="+" if option.many else None, help=option.help.replace("%", "%%")
            )
            action.choices = _choices(option)
            if option.path:
                _completes(action, shtab.FILE)
    return shtab.complete(parser, shell=shell) + "\n"


def _completes(action: argparse.Action, how: Any) -> None:
    # By this attribute shtab is told what is no fixed list of words.
    action.complete = how  # type: ignore[attr-defined]


def _choices(option: Option) -> list[str] | None:
    if option.names is not None:
        return list(option.names()) or None
    if option.annotation is bool:
        return ["true", "false"]
    if get_origin(option.annotation) is Literal:
        return [str(value) for value in get_args(option.annotation)]
    return None
