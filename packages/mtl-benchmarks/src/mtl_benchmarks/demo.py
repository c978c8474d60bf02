"""The demonstration: digits with FairGrad, without and with COST, against models that learn one task alone.

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
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.report import Moves, moves
from mtl_benchmarks.session import execute, open_console, print_report
from mtl_core.errors import InvalidInputError, MissingExtraError

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
    return 0


def _demonstrate(out: Path, seeds: Sequence[int], epochs: int | None, console: Console) -> None:
    begin = time.perf_counter()
    configs = tuple(
        RunConfig.resolve("digits", "fairgrad", teleport, seed=seed, epochs=epochs)
        for teleport in (None, "cost")
        for seed in seeds
    )
    console.print(
        "Two overlaid handwritten digits, three tasks on one small network: which digit is at the upper left, which at "
        "the lower right, and what the picture looks like. First each task alone, then all three with FairGrad, "
        "then the same with teleports where the weakest task's gradient conflicts with the mean.",
        highlight=False,
    )
    results = execute(Plan(configs, out, baselines=True, checkpoint_every=None), console)
    print_report(results, console, figures=out / "figures")
    found = moves(results)
    console.print(_sentence(found), highlight=False)
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
