"""``mtl-bench completion``: what a shell needs to complete commands, names and options."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.command_line.command import Command
from mtl_core import UnknownNameError

__all__ = ["COMMAND", "SHELLS"]

SHELLS = ("bash", "zsh", "fish")


def _run(words: Sequence[str]) -> None:
    from mtl_benchmarks.command_line.completion import script
    from mtl_benchmarks.commands import COMMANDS, find_command

    parsed = COMMAND.parse(words, at_least=1, at_most=1)
    if parsed is None:
        return
    shell = parsed.standing[0]
    if shell not in SHELLS:
        raise UnknownNameError("shell", shell, SHELLS)
    print(script(shell, [find_command(name) for name in COMMANDS]), end="")


COMMAND = Command(
    "completion",
    "bash|zsh|fish",
    "a script by which a shell completes commands, names and options",
    _run,
    standing=lambda: SHELLS,
    examples=(
        "mtl-bench completion bash > ~/.local/share/bash-completion/completions/mtl-bench",
        'eval "$(mtl-bench completion zsh)"',
        "mtl-bench completion fish > ~/.config/fish/completions/mtl-bench.fish",
    ),
)
