"""Does an auxiliary task help the main ones? Real auxiliary tasks, weighted by hand and by a bilevel method.

    python benchmarks/auxiliary.py [--benchmark qm9] [--main homo lumo] [--auxiliary u0] [--seeds 3] [--out runs]
        [--csv FILE]
    python benchmarks/auxiliary.py --read FILE [FILE ...]

Arms: the main tasks alone; all tasks with equal weights; the auxiliary tasks at a tenth of the weight; and
`Bilevel(upper=MainTasks(...), weights=AuxiliaryWeights(...))`, the auxiliary learning of the MARIGOLD paper, with its
own settings, with the symmetric estimate, and with the exact hypergradient. Same network, start and batches in all of
them. Printed are the change of each main task's reported metrics against the main tasks alone, of the same seed, in
percent (lower is better), and its mean over them, with Student's 95 % interval over the seeds, its p, and p by Holm's
correction over all arms; and the final weight of the auxiliary tasks. Runs go on where they were stopped. `--csv`
writes one line per run; `--read` prints the tables of such files, whose tests are one family, as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_aggregators import AuxiliaryWeights, Bilevel, MainTasks
from mtl_benchmarks import Choice, RunConfig, RunResult, run_all
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.command_line import parse_choice, parse_seeds
from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.configuration.making import make_benchmark, resolve_benchmark
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.storage.output import writable_file
from mtl_benchmarks.studies.verdict import holm, p_value

ALONE = "main tasks alone"
"""The arm that the others are held against."""


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
        ALONE: (Choice("ls"), [task for task in both if task in main]),
        "equal weights": (Choice("ls"), both),
        "auxiliary at 0.1": (Choice("ls", {"weights": tuple(tenth)}), both),
        "bilevel, the paper's settings": bilevel(),
        "bilevel, symmetric, radius 0.1, lr 1e-2": bilevel(estimate="symmetric", radius=0.1, lr=1e-2),
        "bilevel, exact, lr 1e-2": bilevel(hypergradient="exact", lr=1e-2),
    }


OWN = ("benchmark", "arm", "seed", "weight", "seconds")
"""The columns of a table of runs that are no metrics."""


def rows_of(benchmark: str, arm: str, results: Sequence[RunResult], metrics: Sequence[Metric]) -> list[dict[str, str]]:
    """One line per run of an arm."""
    rows = []
    for result in results:
        ended, seed = weight(result), str(result.config.seed)
        own = (benchmark, arm, seed, "" if ended is None else repr(ended), f"{result.seconds:.1f}")
        rows.append(dict(zip(OWN, own, strict=True)) | {m.name: repr(result.values[m.name]) for m in metrics})
    return rows


def weight(result: RunResult) -> float | None:
    """The mean weight of the auxiliary tasks in the last step that was written down; None where weights are given."""
    auxiliary = result.config.method.options.get("auxiliary")
    if auxiliary is None:
        return None
    with open(result.directory / "steps.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] in auxiliary]
    return statistics.fmean(float(row["weight"]) for row in rows[-len(auxiliary) :])


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """A table of runs."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """The runs of a table."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or tuple(rows[0])[: len(OWN)] != OWN:
        raise SystemExit(f"--read must be tables that --csv wrote, with the columns {', '.join(OWN)}; got {path}")
    return rows


def changes(rows: Sequence[dict[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Arm → metric → change against the main tasks alone by seed, in percent; ``"mean"`` is that over the metrics."""
    metrics = [metric for metric in benchmark_class(rows[0]["benchmark"]).metrics if metric.name in rows[0]]
    plain = {row["seed"]: row for row in rows if row["arm"] == ALONE}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        by: dict[str, float] = {}
        for metric in metrics:
            before = float(plain[row["seed"]][metric.name])
            by[metric.name] = -100.0 * metric.sign * (float(row[metric.name]) - before) / abs(before)
        for name, change in (by | {"mean": statistics.fmean(by.values())}).items():
            found.setdefault(row["arm"], {}).setdefault(name, []).append(change)
    return found


def markdown(*studies: Sequence[dict[str, str]]) -> list[list[str]]:
    """The lines of one table per study; the tests of all of them are one family."""
    found = [changes(rows) for rows in studies]
    plain = {
        (k, arm): p_value(own["mean"]) for k, each in enumerate(found) for arm, own in each.items() if arm != ALONE
    }
    adjusted = dict(zip(plain, holm(list(plain.values())), strict=True))
    made = []
    for k, (rows, each) in enumerate(zip(studies, found, strict=True)):
        heading = ("arm", *each[ALONE], "p", "p (Holm)", "weight at the end", "s per run")
        lines = [heading, ("---",) * len(heading)]
        for arm, own in each.items():
            runs = [row for row in rows if row["arm"] == arm]
            ended = [float(row["weight"]) for row in runs if row["weight"]]
            numbers = [""] * (len(own) + 2)
            if arm != ALONE:
                numbers = [Estimate.of(values).text(1).replace("-", "−") for values in own.values()]
                numbers += [f"{plain[k, arm]:.2g}", f"{adjusted[k, arm]:.2g}"]
            seconds = f"{statistics.fmean(float(row['seconds']) for row in runs):.0f}"
            lines.append((arm, *numbers, f"{min(ended):.3g} to {max(ended):.3g}" if ended else "", seconds))
        made.append([f"| {' | '.join(line)} |" for line in lines])
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="qm9")
    parser.add_argument("--main", nargs="+", default=["homo", "lumo"])
    parser.add_argument("--auxiliary", nargs="+", default=["u0"])
    parser.add_argument("--seeds", default="3", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--out", type=Path, default=Path("runs/auxiliary"))
    parser.add_argument("--csv", type=Path, help="write one line per run to this file")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="print the tables of such files")
    options = parser.parse_args()
    studies = [read(path) for path in options.read or ()]
    if not studies:
        choice = resolve_benchmark(parse_choice("benchmark", options.benchmark))
        benchmark = make_benchmark(choice)
        if unknown := [task for task in (*options.main, *options.auxiliary) if task not in benchmark.tasks]:
            parser.error(
                f"--main and --auxiliary must be tasks of {choice.name}, {', '.join(benchmark.tasks)}; got {unknown}"
            )
        if len(parse_seeds(options.seeds)) < 2:
            parser.error(f"--seeds must be two or more, as one has no interval; got {options.seeds}")
        if options.csv is not None:
            writable_file("--csv", options.csv)  # before hours of training
        metrics = [metric for metric in benchmark.metrics if metric.task in options.main]
        seeds = parse_seeds(options.seeds)
        rows: list[dict[str, str]] = []
        for arm, (method, tasks) in arms(benchmark.tasks, options.main, options.auxiliary).items():
            configs = [RunConfig.resolve(choice, method, tasks=tasks, seed=seed, heads="weighted") for seed in seeds]
            ended = run_all(configs, options.out, say=lambda words: print(words, file=sys.stderr))
            rows += rows_of(choice.name, arm, ended, metrics)
        studies = [rows]
        if options.csv is not None:
            write(options.csv, rows)
    for lines, own in zip(markdown(*studies), studies, strict=True):
        n = len({row["seed"] for row in own})
        print(f"{own[0]['benchmark']}: change against the main tasks alone, %, {n} seeds\n")
        print("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
