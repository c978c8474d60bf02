"""Does an auxiliary task help the main ones? Real auxiliary tasks, weighted by hand and by a bilevel method.

    python benchmarks/auxiliary.py [--benchmark qm9] [--main homo lumo] [--auxiliary u0] [--seeds 3] [--out runs]

Arms: the main tasks alone; all tasks with equal weights; the auxiliary tasks at a tenth of the weight; and
`Bilevel(upper=MainTasks(...), weights=AuxiliaryWeights(...))`, the auxiliary learning of the MARIGOLD paper, with its
own settings, with the symmetric estimate, and with the exact hypergradient. Same network, start and batches in all of
them. Printed are the change of each main task's reported metrics against the main tasks alone, of the same seed, in
percent (lower is better), and its mean over them, with Student's 95 % interval over the seeds; and the final weight of
the auxiliary tasks. Runs go on where they were stopped.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mtl_aggregators import AuxiliaryWeights, Bilevel, MainTasks
from mtl_benchmarks import Choice, RunConfig, RunResult, run_all
from mtl_benchmarks.command_line import parse_choice, parse_seeds
from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.configuration.making import make_benchmark, resolve_benchmark


class Auxiliary(Bilevel):
    """The bilevel method in which the losses of the main tasks judge the weights of the auxiliary ones.

    Args:
        main: names of the main tasks.
        auxiliary: names of the auxiliary tasks.
        start: their first weight.
        lr: learning rate of their weights.
        estimate: as of ``Bilevel``.
        hypergradient: as of ``Bilevel``.
        radius: as of ``Bilevel``.
    """

    def __init__(
        self,
        *,
        main: tuple[str, ...],
        auxiliary: tuple[str, ...],
        start: float = 1.0,
        lr: float = 1e-4,
        estimate: str = "single_point",
        hypergradient: str = "zeroth_order",
        radius: float = 1e-3,
    ) -> None:
        super().__init__(
            upper=MainTasks(*main),
            weights=AuxiliaryWeights(list(auxiliary), start=start, minimum=0.0, lr=lr),
            estimate=estimate,  # type: ignore[arg-type]
            hypergradient=hypergradient,  # type: ignore[arg-type]
            radius=radius,
        )


def arms(tasks: Sequence[str], main: Sequence[str], auxiliary: Sequence[str]) -> dict[str, tuple[Choice, list[str]]]:
    """Each arm's method and tasks."""
    both = [task for task in tasks if task in {*main, *auxiliary}]
    kinds = {"main": tuple(main), "auxiliary": tuple(auxiliary)}

    def bilevel(**settings: float | str) -> tuple[Choice, list[str]]:
        return Choice("auxiliary:Auxiliary", {**kinds, **settings}), both

    tenth = [1.0 if task in main else 0.1 for task in both]
    return {
        "main tasks alone": (Choice("ls"), [task for task in both if task in main]),
        "equal weights": (Choice("ls"), both),
        "auxiliary at 0.1": (Choice("ls", {"weights": tuple(tenth)}), both),
        "bilevel, the paper's settings": bilevel(),
        "bilevel, symmetric, radius 0.1, lr 1e-2": bilevel(estimate="symmetric", radius=0.1, lr=1e-2),
        "bilevel, exact, lr 1e-2": bilevel(hypergradient="exact", lr=1e-2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="qm9")
    parser.add_argument("--main", nargs="+", default=["homo", "lumo"])
    parser.add_argument("--auxiliary", nargs="+", default=["u0"])
    parser.add_argument("--seeds", default="3", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--out", type=Path, default=Path("runs/auxiliary"))
    options = parser.parse_args()
    choice = resolve_benchmark(parse_choice("benchmark", options.benchmark))
    benchmark = make_benchmark(choice)
    metrics = [metric for metric in benchmark.metrics if metric.task in options.main]
    seeds = parse_seeds(options.seeds)
    found: dict[str, list[RunResult]] = {}
    for arm, (method, tasks) in arms(benchmark.tasks, options.main, options.auxiliary).items():
        configs = [RunConfig.resolve(choice, method, tasks=tasks, seed=seed, heads="weighted") for seed in seeds]
        found[arm] = run_all(configs, options.out, say=lambda words: print(words, file=sys.stderr))
    table = Table(title=f"{options.benchmark}: change against the main tasks alone, %", box=box.SIMPLE_HEAD)
    for heading in ("arm", *(metric.name for metric in metrics), "mean", "weight at the end", "s per run"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    plain = next(iter(found.values()))
    for arm, results in found.items():
        changes = [
            [-metric.sign * 100.0 * (r.values[metric.name] / p.values[metric.name] - 1.0) for metric in metrics]
            for r, p in zip(results, plain, strict=True)
        ]
        columns = [*zip(*changes, strict=True), [statistics.fmean(row) for row in changes]]
        ended = [w for result in results if (w := weight(result, options.auxiliary)) is not None]
        table.add_row(
            arm,
            *(Estimate.of(list(column)).text(1) for column in columns),
            f"{min(ended):.3g} to {max(ended):.3g}" if ended else "",
            f"{statistics.fmean(result.seconds for result in results):.0f}",
        )
    Console(width=240).print(table)
    return 0


def weight(result: RunResult, auxiliary: Sequence[str]) -> float | None:
    """The mean weight of the auxiliary tasks in the last step that was written down; None where weights are given."""
    if result.config.method.name == "ls":
        return None
    with open(result.directory / "steps.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] in auxiliary]
    return statistics.fmean(float(row["weight"]) for row in rows[-len(auxiliary) :])


if __name__ == "__main__":
    sys.exit(main())
