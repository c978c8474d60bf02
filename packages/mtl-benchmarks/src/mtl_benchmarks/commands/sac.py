"""``mtl-bench sac``: MT10 by multi-task soft actor-critic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.command_line.choosing import Chosen, chosen_of
from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.help_text import layout
from mtl_benchmarks.command_line.kinds import KINDS
from mtl_benchmarks.command_line.option import Option, read_options
from mtl_benchmarks.command_line.request import in_words_of, name_word
from mtl_benchmarks.command_line.words import Words, split
from mtl_benchmarks.components.options import option_arguments, option_defaults
from mtl_benchmarks.sac.protocol import SACProtocol
from mtl_benchmarks.worlds.rollouts import METAWORLD
from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_core import InvalidInputError

__all__ = ["COMMAND"]

_MANY = ("--tasks",)
_REFRESH = 0.5


def _own_options(method: str = "ls") -> dict[str, Sequence[Option]]:
    defaults = option_defaults(SACProtocol)
    return {
        "what is run": [
            Option("--method", str, "a weighting method", method, shown="NAME", names=KINDS["method"].names),
            Option("--tasks", str, "train these tasks only", many=True, shown="TASK", names=lambda: MT10_TASKS),
            Option("--seed", int, "of initialisation, goals, noise and draws", 0),
            Option("--world", str, "the simulator, as package.module:Class", METAWORLD),
        ],
        "how": [
            Option("--out", str, "directory of the run", "runs-sac/sac-METHOD-seedSEED", shown="DIR", path=True),
            Option("--checkpoint_every", int, "steps between checkpoints", 3000),
            Option("--device", str, "as torch names it", "cpu"),
            Option("--threads", int, "torch's CPU threads", 1),
        ],
        "the papers' protocol": [
            Option(f"--{name}", argument.annotation, argument.help, defaults[name])
            for name, argument in option_arguments(SACProtocol).items()
        ],
    }


def _run(words: Sequence[str]) -> None:
    found = split(words, many=_MANY)
    if found.standing:
        raise InvalidInputError(f"`sac` must stand without further words, got {' '.join(found.standing)}.")
    method = chosen_of("method", name_word(found, "--method", "ls"), None, found)
    groups = {**_own_options(method.choice.name), f"method {method.choice.name}": method.options()}
    if found.help:
        print(_help(groups), end="")
        return
    table = [option for options in groups.values() for option in options]
    with in_words_of(table):
        _train(found, method, table)


def _help(groups: dict[str, Sequence[Option]]) -> str:
    return layout(
        "mtl-bench sac [options]",
        about=f"{COMMAND.summary}: in Meta-World, with one goal per task.",
        examples=(
            "mtl-bench sac --method cagrad --method.c 0.9 --device cuda --grouping vmap   # as the papers",
            "mtl-bench sac --steps 3000 --evaluate_every 1500 --batch_size 320            # to try it out",
        ),
        groups=groups,
        notes=("A run that was broken off goes on where it was when the same command is given again.",),
    )


def _train(found: Words, method: Chosen, table: Sequence[Option]) -> None:
    import time

    from mtl_benchmarks.sac import SACConfig, SACProgress, train
    from mtl_benchmarks.session import open_console

    values = read_options(found.given, table)
    names = option_arguments(SACProtocol)
    protocol = SACProtocol(**{name: values[f"--{name}"] for name in names if f"--{name}" in values})
    settings = {
        name: values[f"--{name}"] for name in ("tasks", "seed", "world", "device", "threads") if f"--{name}" in values
    }
    config = SACConfig.resolve(method.resolved(values), protocol=protocol, **settings)
    out = Path(values["--out"]) if "--out" in values else Path("runs-sac") / config.name
    console = open_console()
    shown = time.perf_counter()

    def progress(now: SACProgress) -> None:
        nonlocal shown
        if time.perf_counter() - shown < _REFRESH and now.done < now.total:
            return
        shown = time.perf_counter()
        success = "" if now.success is None else f", success {now.success:.0f} %"
        console.print(f"  {now.done:,} of {now.total:,} steps{success}", highlight=False)

    result = train(
        config,
        out,
        checkpoint_every=values.get("--checkpoint_every", 3000),
        progress=progress,
        say=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    best, step = result.values["best_success"], int(result.values["best_step"])
    print(f"best mean success {best:.1f} % after {step:,} steps, {result.values['success']:.1f} % at the end")
    print(f"run: {result.directory}")


COMMAND = Command(
    "sac",
    "[options]",
    "MT10 by soft actor-critic, as the papers train it",
    _run,
    offered=lambda: [option for options in _own_options().values() for option in options],
)
