"""The demonstration: digits with FairGrad, without and with COST.

Beside them models that learn one task alone, and random moves of the same lengths.

``python -m mtl_benchmarks.demo --out DIR``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mtl_benchmarks.command_line import Plan, parse_seeds
from mtl_benchmarks.comparison import Moves, moves
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.session import execute, open_console, print_report, with_baselines
from mtl_benchmarks.studies.matching_lengths import lengths_of
from mtl_core import InvalidInputError, MissingExtraError, NonFiniteStateError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, draw the figures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mtl_benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory of the runs")
    parser.add_argument("--seeds", default="3", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--epochs", type=int, help="default: the benchmark's protocol")
    arguments = parser.parse_args(argv)
    console = open_console()
    try:
        _demonstrate(arguments.out, parse_seeds(arguments.seeds), arguments.epochs, console)
    except (InvalidInputError, MissingExtraError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except NonFiniteStateError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def _demonstrate(out: Path, seeds: Sequence[int], epochs: int | None, console: Console) -> None:
    begin = time.perf_counter()

    def resolve(teleport: str | Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve("digits", "fairgrad", teleport, seed=seed, epochs=epochs)

    def train(configs: Sequence[RunConfig]) -> list[RunResult]:
        return execute(Plan(tuple(configs), out, baselines=False, checkpoint_every=None), console)

    console.print(
        "Two overlaid handwritten digits, three tasks on one small network: which digit is at the upper left, which at "
        "the lower right, and what the picture looks like. First each task alone, then all three with FairGrad, then "
        "with teleports (COST) where the weakest task's gradient conflicts with the mean.",
        highlight=False,
    )
    plain = [resolve(None, seed) for seed in seeds]
    results = train(with_baselines([*plain, *(resolve("cost", seed) for seed in seeds)]))
    teleported = [run for run in results if run.config.teleport is not None]
    controls = [
        resolve(Choice("random", {"length": lengths_of(run)}), run.config.seed) for run in teleported if lengths_of(run)
    ]
    if controls:
        console.print("Then the control: moves as long as those teleports, in random directions.", highlight=False)
        results += train(controls)
    print_report(results, console, figures=out / "figures")
    console.print(_sentence(moves(teleported)), highlight=False)
    console.print(f"All of it took {time.perf_counter() - begin:.0f} seconds.", highlight=False)
    # A plain line, so that the path is never wrapped.
    print(f"runs: {out.resolve()}")


def _sentence(found: Moves | None) -> str:
    """What the teleports did, in words."""
    if found is None or not found.accepted:
        return "No teleport was made: dominated conflict did not occur, or every move was undone."
    return (
        f"Over {found.accepted} accepted teleports ({found.rejected} undone): the smallest cosine of a task's gradient "
        f"with the mean gradient went from {found.min_cosine[0]:.3f} to {found.min_cosine[1]:.3f}, the norm of the "
        f"mean gradient from {found.mean_norm[0]:.3f} to {found.mean_norm[1]:.3f}, and the losses changed by "
        f"{100 * found.drift:.2f} % on average."
    )


if __name__ == "__main__":
    raise SystemExit(main())
