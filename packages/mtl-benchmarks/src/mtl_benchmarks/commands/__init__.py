"""The commands of ``mtl-bench``, one file each.

A command is a :class:`~mtl_benchmarks.command_line.command.Command` by the name ``COMMAND`` in a module of this folder,
and a line in :data:`COMMANDS`. Its module is imported when the command is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from mtl_benchmarks.command_line.command import Command
from mtl_core import UnknownNameError

__all__ = ["COMMANDS", "find_command"]

COMMANDS: Mapping[str, str] = {
    "list": "mtl_benchmarks.commands.listing",
    "describe": "mtl_benchmarks.commands.describe",
    "run": "mtl_benchmarks.commands.run",
    "compare": "mtl_benchmarks.commands.compare",
    "report": "mtl_benchmarks.commands.report",
    "study": "mtl_benchmarks.commands.study",
    "verdict": "mtl_benchmarks.commands.verdict",
    "ablate": "mtl_benchmarks.commands.ablate",
    "figure": "mtl_benchmarks.commands.figure",
    "sac": "mtl_benchmarks.commands.sac",
    "data": "mtl_benchmarks.commands.data",
    "completion": "mtl_benchmarks.commands.completion",
}
"""Name → the module that has it."""


def find_command(name: str) -> Command:
    """The command of a name.

    Raises:
        UnknownNameError: there is none; lists those that exist.
    """
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    command: Command = importlib.import_module(COMMANDS[name]).COMMAND
    return command
