"""Does teleporting free the mean gradient from the ridges of the two-objective problem, and would any move do?

Linear scalarisation (LS) and CAGrad from the three starts of CAGrad's paper; then, from the starts where LS ends away
from the optimum, LS with COST over several seeds, and LS with moves of the same lengths in random directions.

    python benchmarks/toy.py [--starts 0 1 2] [--seeds 3] [--epochs 50] [--plain-epochs 100] [--processes 2]
                             [--out runs/toy]

Adam with learning rate 1e-3, 1,000 steps per epoch, at most one move per epoch; LS and CAGrad alone have 100 epochs, as
in CAGrad's paper, runs with moves 50. Finished runs are not repeated. The
exit code is 1 if a claim that is printed at the end does not hold.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mtl_benchmarks import Choice, RunConfig, RunDirectory, RunResult
from mtl_benchmarks.benchmarks.toy import optimum
from mtl_benchmarks.figures import save, toy_trajectories
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.studies.matching_lengths import lengths_of

STARTS = (0, 1, 2)
RADIUS = 0.1
# Where LS ends in CAGrad's setting after 100,000 steps; it creeps along the ridge, so only roughly.
STUCK = {0: (-5.05, 2.13), 2: (5.03, 2.32)}


def config(start: int, method: str | Choice, teleport: Choice | None, *, seed: int, epochs: int) -> RunConfig:
    return RunConfig.resolve(Choice("toy", {"start": start}), method, teleport, seed=seed, epochs=epochs)


def end(result: RunResult) -> tuple[float, float]:
    return result.values["x1"], result.values["x2"]


def arrival(result: RunResult) -> int | None:
    """The first step after which the path stays within the radius."""
    outside = [
        step
        for step, point in enumerate(RunDirectory.existing(result.directory).read_trace(), start=1)
        if math.dist(point, optimum()) > RADIUS
    ]
    last = outside[-1] if outside else 0
    return last + 1 if math.dist(end(result), optimum()) <= RADIUS else None


def results_table(results: Sequence[RunResult]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="End points", title_justify="left")
    headings = (
        "start",
        "method",
        "seed",
        "x1",
        "x2",
        "L1",
        "L2",
        "distance",
        "within 0.1\nfrom step",
        "moves",
        "median\nlength",
        "s",
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 1 else "right")
    for result in results:
        values, lengths, step = result.values, lengths_of(result), arrival(result)
        table.add_row(
            str(result.config.benchmark.options["start"]),
            result.config.label,
            str(result.config.seed),
            *(f"{values[name]:.3f}" for name in ("x1", "x2", "loss_first", "loss_second", "distance")),
            "never" if step is None else f"{step:,}",
            str(len(lengths)) if result.config.teleport else "",
            f"{statistics.median(lengths):.3f}" if lengths else "",
            f"{result.seconds:.0f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50, help="of 1,000 steps, for runs with moves")
    parser.add_argument("--plain-epochs", type=int, default=100, help="for LS and CAGrad alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"))
    options = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)

    def say(result: RunResult) -> None:
        start, seed = result.config.benchmark.options["start"], result.config.seed
        console.print(f"  start {start}, {result.config.label}, seed {seed}: {result.seconds:.0f} s", highlight=False)

    def go(jobs: Sequence[RunConfig]) -> list[RunResult]:
        return run_all(jobs, options.out, processes=options.processes, progress=say)

    console.print("LS and CAGrad", style="bold")
    cagrad = Choice("cagrad", {"c": 0.5})
    starts = sorted(set(options.starts))
    found = go([config(s, m, None, seed=0, epochs=options.plain_epochs) for m in ("ls", cagrad) for s in starts])
    plain, averse = found[: len(starts)], found[len(starts) :]
    stuck = [result.config.benchmark.options["start"] for result in plain if result.values["distance"] > RADIUS]

    pairs = [(start, seed) for start in stuck for seed in range(options.seeds)]
    console.print("LS with COST, random probes", style="bold")
    random_probes = Choice("cost", {"sharpness": "random"})
    teleported = go([config(s, "ls", random_probes, seed=k, epochs=options.epochs) for s, k in pairs])
    console.print("LS with COST, ascent probe: nothing in it is random, so one seed", style="bold")
    ascent_probe = Choice("cost", {"sharpness": "ascent"})
    ascending = go([config(s, "ls", ascent_probe, seed=0, epochs=options.epochs) for s in stuck])
    console.print("LS with random moves as long as those of COST with random probes", style="bold")
    moves = [(pair, lengths_of(result)) for pair, result in zip(pairs, teleported, strict=True)]
    moved = go(
        [
            config(s, "ls", Choice("random", {"length": lengths}), seed=k, epochs=options.epochs)
            for (s, k), lengths in moves
            if lengths
        ]
    )

    console.print(results_table([*plain, *averse, *teleported, *ascending, *moved]))
    rows = {
        "LS": plain,
        "CAGrad": averse,
        "LS + COST, random probes": teleported,
        "LS + COST, ascent": ascending,
        "LS + random moves": moved,
    }
    drawn = toy_trajectories({name: runs for name, runs in rows.items() if runs})
    figure = save(drawn, options.out / "figures" / "toy.png")

    def reached(results: Sequence[RunResult]) -> str:
        steps = [step for step in map(arrival, results) if step is not None]
        when = f", after {statistics.median(steps):,.0f} steps (median)" if steps else ""
        return f"{len(steps)} of {len(results)}{when}"

    ends = {start: end(result) for start, result in zip(starts, plain, strict=True)}
    ridge = [start for start in starts if start in STUCK]
    near = [start for start in ridge if start in stuck and math.dist(ends[start], STUCK[start]) < 1.0]
    claims = {
        "LS ends on the ridge from the starts 0 and 2 and reaches the optimum from 1": stuck == ridge == near,
        f"CAGrad reaches the optimum: {reached(averse)}": all(r.values["distance"] <= RADIUS for r in averse),
        f"LS + COST (random probes) reaches it: {reached(teleported)}": bool(teleported)
        and all(r.values["distance"] <= RADIUS for r in teleported),
        f"LS + COST (ascent) reaches it: {reached(ascending)}": bool(ascending)
        and all(r.values["distance"] <= RADIUS for r in ascending),
    }
    for text, holds in claims.items():
        console.print(f"{'yes' if holds else 'NO '}  {text}", highlight=False)
    console.print(f"     control, LS + random moves of equal length, reaches it: {reached(moved)}", highlight=False)
    print(f"figure: {figure.resolve()}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
