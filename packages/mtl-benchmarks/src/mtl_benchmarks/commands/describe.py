"""``mtl-bench describe``: one benchmark, method, teleport, model or part."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.command_line.command import Command
from mtl_core import InvalidInputError

__all__ = ["COMMAND"]


def _names() -> list[str]:
    from mtl_benchmarks.description import names

    return names()


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.description import describe

    parsed = COMMAND.parse(words, at_most=None)
    if parsed is None:
        return
    if len(parsed.standing) != 1:
        found = " ".join(parsed.standing) or "none"
        raise InvalidInputError(
            f"`describe` must be followed by a name, got {found}. `mtl-bench list` shows the names."
        )
    print(describe(parsed.standing[0]))


COMMAND = Command(
    "describe",
    "NAME",
    "one of them: tasks, metrics, options, reference",
    _run,
    standing=_names,
    examples=("mtl-bench describe digits", "mtl-bench describe cost", "mtl-bench describe mine:Three"),
)
