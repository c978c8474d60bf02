"""What a teleport does to conflict, norm and losses, over many states with a dominated conflict.

    python benchmarks/teleport_states.py [--benchmarks digits ctr] [--states 100] [--seeds 10,11,12,13,14]

Plain training (the sum of the losses) is stopped wherever the task of the smallest gradient conflicts with the mean. At
each such state a copy of the model is teleported with each of the three sharpness estimates, and moved at random as far
as the default went; training then goes on untouched. Losses are held on four probe batches, or on one with
`--probe-batches 1`. Drift is measured on the batches that were held and on others that were not, cosines and norms on
the first of those that were held and on the others. The states of one run resemble each other, so the spread over
states is no interval for another run.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mtl_benchmarks import Choice
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.command_line import parse_choice, parse_seeds
from mtl_benchmarks.configuration.making import make_benchmark, resolve_benchmark
from mtl_benchmarks.figures.drawing import new_figure, save
from mtl_core import Problem, mean_cosines
from mtl_core.extension import collect_problem
from mtl_teleport import COST, DominatedConflict, RandomTeleport
from mtl_teleport.drift import relative_drift
from mtl_teleport.evaluation import probe_losses
from mtl_teleport.isolation import isolated

KINDS = ("random", "ascent", "exact")
CONTROL = "random move"
DEFAULT = "exact"
HELD_OUT = 4


def look(problem: Problem, batches: Sequence[Any]) -> tuple[float, float]:
    """Means over batches of the smallest cosine and of the mean gradient's norm, in evaluation mode."""
    cosines, norms = [], []
    with isolated(problem.model):
        for batch in batches:
            gramian = collect_problem(problem, problem.losses(batch)).host_gramian
            cosines.append(float(mean_cosines(gramian=gramian).min()))
            norms.append(math.sqrt(max(float(gramian.mean()), 0.0)))
    return statistics.fmean(cosines), statistics.fmean(norms)


def measure(
    benchmark: Benchmark, model: torch.nn.Module, held: Sequence[Any], others: Sequence[Any], lr: float, seed: int
) -> list[dict[str, Any]]:
    """One row per way of moving a copy of the model."""
    rows = []
    length: float | None = None
    for kind in (*KINDS, CONTROL):
        moved = copy.deepcopy(model)
        problem = benchmark.problem(moved, tasks=benchmark.tasks)
        if kind == CONTROL and length is None:
            continue  # the default was undone, so there is nothing to match
        method = (
            RandomTeleport(length=length or 1.0, seed=seed) if kind == CONTROL else COST(sharpness=kind, seed=seed)  # type: ignore[arg-type]
        )
        with isolated(moved):
            before = probe_losses(problem, others)
        other_before = look(problem, others)
        gradients = collect_problem(problem, problem.losses(held[0]))
        report = method.teleport(problem, held, gradients, lr=lr)
        if kind == DEFAULT and report.accepted:
            length = report.length
        with isolated(moved):
            after = probe_losses(problem, others)
        other_after = look(problem, others)
        drift = statistics.fmean(float(relative_drift(b, a)) for a, b in zip(before, after, strict=True))
        rows.append(
            {
                "kind": kind,
                "accepted": report.accepted,
                "cosine before": report.min_cosine_before,
                "cosine after": report.min_cosine_after if report.accepted else report.min_cosine_before,
                "norm before": report.mean_norm_before,
                "norm after": report.mean_norm_after if report.accepted else report.mean_norm_before,
                "drift": report.drift if report.accepted else 0.0,
                "other cosine before": other_before[0],
                "other cosine after": other_after[0],
                "other norm ratio": other_after[1] / other_before[1],
                "other drift": drift,
                "relative length": report.relative_length,
                "seconds": report.seconds,
            }
        )
    return rows


def states(choice: Choice, *, wanted: int, seeds: Sequence[int], gap: int, probe_batches: int) -> list[dict[str, Any]]:
    """Rows of up to ``wanted`` states, spread over the seeds."""
    benchmark = make_benchmark(choice)
    protocol = benchmark.training
    trigger = DominatedConflict()
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = benchmark.build()
        problem = benchmark.problem(model, tasks=benchmark.tasks)
        optimizer = protocol.optimizer.build(problem)
        source = benchmark.batches(batch_size=protocol.batch_size, seed=seed, device="cpu")
        found, last = 0, -gap
        share = math.ceil(wanted / len(seeds))
        for step in range(protocol.total_steps(len(source))):
            epoch, index = divmod(step, len(source))
            batch = source.batch(epoch, index)
            gradients = collect_problem(problem, problem.losses(batch))
            if step - last >= gap and trigger(gradients.host_gramian):
                # Batches of epochs that are never trained on: their composition is new, their samples are not.
                held = [batch, *(source.batch(10**6 + step, k) for k in range(probe_batches - 1))]
                others = [source.batch(2 * 10**6 + step, k) for k in range(HELD_OUT)]
                new = measure(benchmark, model, held, others, protocol.lr, seed)
                rows += [{"benchmark": choice.name, "seed": seed, "step": step, **row} for row in new]
                found, last = found + 1, step
                if found >= share:
                    break
            optimizer.zero_grad()
            gradients.assign(gradients.matrix.sum(0))
            gradients.assign_heads()
            optimizer.step()
    return rows


def spread(values: Sequence[float], digits: int = 2, factor: float = 1.0) -> str:
    """Median, and the quartiles."""
    scaled = sorted(value * factor for value in values)
    if len(scaled) < 2:
        return f"{scaled[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(scaled, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}, {high:.{digits}f})"


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    found.add_column("moved by", no_wrap=True)
    for heading in (
        "states",
        "kept",
        "min cosine\nbefore",
        "after",
        "conflict\ngone %",
        "norm\nratio",
        "drift %",
        "others:\ncosine",
        "others:\ncosine after",
        "others:\nnorm ratio",
        "others:\ndrift %",
        "seconds",
    ):
        found.add_column(heading, justify="right", no_wrap=True)
    for kind in (*KINDS, CONTROL):
        own = [row for row in rows if row["kind"] == kind]
        if not own:
            continue
        found.add_row(
            kind,
            str(len(own)),
            str(sum(row["accepted"] for row in own)),
            spread([row["cosine before"] for row in own]),
            spread([row["cosine after"] for row in own]),
            f"{100 * statistics.fmean(row['cosine after'] >= 0 for row in own):.0f}",
            spread([row["norm after"] / row["norm before"] for row in own]),
            spread([row["drift"] for row in own], factor=100),
            spread([row["other cosine before"] for row in own]),
            spread([row["other cosine after"] for row in own]),
            spread([row["other norm ratio"] for row in own]),
            spread([row["other drift"] for row in own], factor=100),
            spread([row["seconds"] for row in own]),
        )
    return found


def winner(rows: Sequence[dict[str, Any]]) -> str:
    """The estimate of the highest median cosine among those whose median drift is at most 2 %, on held batches."""
    medians = {}
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        if own and statistics.median(row["drift"] for row in own) <= 0.02:
            medians[kind] = statistics.median(row["cosine after"] for row in own)
    return max(medians, key=medians.__getitem__) if medians else "none"


def paired(rows: Sequence[dict[str, Any]], kind: str, other: str) -> str:
    """How often, and by how much, one estimate ended at a higher cosine than another from the same state."""
    of = {name: [row["cosine after"] for row in rows if row["kind"] == name] for name in (kind, other)}
    gains = [a - b for a, b in zip(of[kind], of[other], strict=True)]
    share = 100 * statistics.fmean(gain > 0 for gain in gains)
    return f"{kind} against {other}: higher at {share:.0f} % of the states, by {spread(gains)}"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Distributions per way of moving: cosine, norm ratio and drift, on held batches and on others."""
    kinds = [kind for kind in (*KINDS, CONTROL) if any(row["kind"] == kind for row in rows)]
    panels = {
        "smallest cosine after": ("cosine after", "other cosine after", 1.0),
        "drift [%]": ("drift", "other drift", 100.0),
    }
    figure = new_figure(11, 3.6)
    for number, (heading, (own, other, factor)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, 3, number)
        for side, name in enumerate((own, other)):
            axes.boxplot(
                [[factor * row[name] for row in rows if row["kind"] == kind] for kind in kinds],
                positions=[k + 0.36 * side for k in range(len(kinds))],
                widths=0.3,
                patch_artist=True,
                boxprops={"facecolor": ("tab:blue", "lightgrey")[side], "alpha": 0.6},
                showfliers=False,
            )
        axes.set_xticks([k + 0.18 for k in range(len(kinds))], kinds, fontsize=8)
        axes.set_title(f"{heading} (blue: held, grey: other batches)", fontsize=9)
    axes = figure.add_subplot(1, 3, 3)
    ratios = [[row["norm after"] / row["norm before"] for row in rows if row["kind"] == kind] for kind in kinds]
    axes.boxplot(ratios, showfliers=False)
    axes.set_xticks(range(1, len(kinds) + 1), kinds, fontsize=8)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_title("norm of the mean gradient, after / before", fontsize=9)
    return save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="+", default=["digits", "ctr"])
    parser.add_argument("--states", type=int, default=100, help="of each benchmark")
    parser.add_argument("--seeds", default="10,11,12,13,14", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--gap", type=int, default=5, help="steps between two states of one run, at least")
    parser.add_argument("--probe-batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/teleport-states"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    options.out.mkdir(parents=True, exist_ok=True)
    for spec in options.benchmarks:
        rows = states(
            resolve_benchmark(parse_choice("benchmark", spec)),
            wanted=options.states,
            seeds=parse_seeds(options.seeds),
            gap=options.gap,
            probe_batches=options.probe_batches,
        )
        if not rows:
            console.print(f"{spec}: no state with a dominated conflict was met", highlight=False)
            continue
        console.print(table(f"{spec}: median (quartiles), {options.probe_batches} probe batch(es)", rows))
        for kind, other in (("exact", "ascent"), ("ascent", "random")):
            console.print(paired(rows, kind, other), highlight=False)
        console.print(f"highest cosine at a median drift of at most 2 %: {winner(rows)}", highlight=False)
        stem = spec.replace(":", "-").replace(",", "-").replace("=", "")
        with open(options.out / f"{stem}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"figure: {draw(rows, options.out / f'{stem}.png').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
