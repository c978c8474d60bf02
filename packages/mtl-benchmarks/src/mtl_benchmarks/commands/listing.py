"""``mtl-bench list``: what there is."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.command_line.command import Command

__all__ = ["COMMAND"]


def _run(words: Sequence[str]) -> None:
    if COMMAND.parse(words) is None:
        return
    from mtl_benchmarks.description import overview
    from mtl_benchmarks.session import open_console

    open_console().print(overview())


COMMAND = Command("list", "", "benchmarks, methods, teleports, models and their parts", _run)
