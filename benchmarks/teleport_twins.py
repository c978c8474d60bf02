"""How long what a teleport does lasts: the same run with and without one, step by step on the same batches.

    python benchmarks/teleport_twins.py [--benchmarks digits] [--methods ls fairgrad:alpha=2] [--seeds 3]
        [--designs default newton look-ahead conflict flat random] [--htr released keep transported]
        [--optimizers own sgd] [--stages 0.1 0.5 0.85]

Training is stopped at states early, in the middle and late. From each, copies of model, optimiser and method go on over
the same batches: one untouched, the others with one teleport before their next step. At the move, before any step, and
after 1, 10, 100 and 1,000 steps (as many as fit before the end) they are compared: the smallest cosine with the mean
gradient, the mean gradient's norm, the curvature along it, and the tasks' losses, in evaluation mode on batches that no
search has held (`others`), on those that it has (`held`), and the losses on as many batches as the training set has
(`all`). `random` moves as far as the first design did; *of a step* is how far that is beside the next step of the
untouched run. Losses are compared as the mean over the tasks of the ratio moved / untouched, minus 1; the spread over
states is no interval for another run.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mtl_benchmarks import Choice
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.command_line import parse_choice, parse_seeds
from mtl_benchmarks.configuration.making import make_benchmark, make_method, resolve_benchmark, resolve_method
from mtl_benchmarks.figures.drawing import new_figure, save
from mtl_benchmarks.figures.palette import task_colour
from mtl_core import Problem, mean_cosines, step
from mtl_core.extension import collect_problem
from mtl_teleport import COST, Always, RandomTeleport, TeleportReport
from mtl_teleport.isolation import isolated

DESIGNS: dict[str, dict[str, Any]] = {
    "default": {},
    "newton": {"sharpness": "newton", "aim": None},
    "look-ahead": {"sharpness": "look-ahead", "aim": None},
    "conflict": {"conflict_weight": 1.0, "hold_sharpness": True, "aim": None},
    "flat": {"sharpness": "flat", "aim": None},
}
RANDOM = "random"
AFTER = (1, 10, 100, 1000)
HELD, OTHERS = 4, 4
RADIUS = 1e-2
"""Length of the step along the gradient over which its change is taken for the curvature."""


@dataclass
class State:
    """A run where it was stopped."""

    benchmark: Benchmark
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    method: Any

    @property
    def problem(self) -> Problem:
        """The problem of its model."""
        return self.benchmark.problem(self.model, tasks=self.benchmark.tasks)

    def copy(self) -> State:
        """Model, optimiser and method, which share nothing with these."""
        model, optimizer, method = copy.deepcopy((self.model, self.optimizer, self.method))
        return State(self.benchmark, model, optimizer, method)


def look(state: State, batches: Sequence[Any]) -> dict[str, Any]:
    """Conflict, norm and curvature of the mean gradient, and losses, means over batches in evaluation mode."""
    problem = state.problem
    cosines, norms, curvatures, losses = [], [], [], []
    with isolated(state.model):
        for batch in batches:
            gradients = collect_problem(problem, problem.losses(batch))
            gramian = gradients.host_gramian
            norm = math.sqrt(max(float(gramian.mean()), 0.0))
            cosines.append(float(mean_cosines(gramian=gramian).min()))
            norms.append(norm)
            losses.append(gradients.losses.detach().double())
            curvatures.append(curvature(problem, batch, gradients.matrix.mean(0), norm))
    return {
        "cosine": statistics.fmean(cosines),
        "norm": statistics.fmean(norms),
        "curvature": statistics.fmean(curvatures),
        "losses": torch.stack(losses).nanmean(0),
    }


def mean_losses(state: State, source: Any) -> Tensor:
    """Each task's loss over one epoch's batches, in evaluation mode."""
    problem = state.problem
    found = torch.full((len(source), len(problem.tasks)), math.nan, dtype=torch.float64)
    with isolated(state.model), torch.no_grad():
        for k in range(len(source)):
            losses = problem.losses(source.batch(3 * 10**6, k))
            found[k, list(losses.index)] = losses.values.double()
    return found.nanmean(0)


def curvature(problem: Problem, batch: Any, mean: Tensor, norm: float) -> float:
    r"""Change of the mean loss's slope along its gradient, :math:`u^\top H u`, by a difference of two slopes."""
    if norm == 0.0:
        return 0.0
    unit, slopes = mean / norm, []
    with torch.no_grad():
        start = [p.detach().clone() for p in problem.shared]
    for sign in (1.0, -1.0):
        with torch.no_grad():
            parts = unit.split([p.numel() for p in problem.shared])
            for p, at, part in zip(problem.shared, start, parts, strict=True):
                p.copy_(at + sign * RADIUS * part.view_as(p))
        found = collect_problem(problem, problem.losses(batch)).matrix.mean(0)
        slopes.append(float(torch.dot(found.double(), unit.double())))
    with torch.no_grad():
        for p, at in zip(problem.shared, start, strict=True):
            p.copy_(at)
    return (slopes[0] - slopes[1]) / (2.0 * RADIUS)


def states(choice: Choice, method: Choice, *, seed: int, stages: Sequence[float], optimizer: str) -> Iterator[Any]:
    """The run stopped at each stage: number of the step, its batches from there on, and the state."""
    benchmark = make_benchmark(choice)
    protocol = benchmark.training
    torch.manual_seed(seed)
    model = benchmark.build()
    problem = benchmark.problem(model, tasks=benchmark.tasks)
    made: torch.optim.Optimizer = (
        protocol.optimizer.build(problem)
        if optimizer == "own"
        else torch.optim.SGD(model.parameters(), lr=10.0 * protocol.lr, momentum=0.9)
    )
    state = State(benchmark, model, made, make_method(method, seed=seed))
    source = benchmark.batches(batch_size=protocol.batch_size, seed=seed, device="cpu")
    total = protocol.total_steps(len(source))
    wanted = {int(stage * total) for stage in stages}
    for number in range(max(wanted) + 1):
        if number in wanted:
            yield number, total, source, state
        step(problem, source.batch(*divmod(number, len(source))), made, state.method)


def mover(state: State, design: str, held: Sequence[Any], length: float, **settings: Any) -> COST | RandomTeleport:
    """The teleports of a design on a state."""
    settings |= {"trigger": Always(), "max_per_epoch": None}
    if design == RANDOM:
        return RandomTeleport(state.method, length=length, **settings)
    return COST(state.method, probe_batches=held, **settings, **DESIGNS[design])


def moved(state: State, batch: Any, method: Any) -> TeleportReport:
    """One step with a teleport before it."""
    (report,) = (e for e in step(state.problem, batch, state.optimizer, method).events if isinstance(e, TeleportReport))
    return report


def compare(number: int, total: int, source: Any, state: State, designs: Sequence[str], htr: str, seed: int) -> Any:
    """Rows of one state: a design, how many steps after the move, and what is different then."""
    batch = source.batch(*divmod(number, len(source)))
    held = [batch, *(source.batch(10**6 + number, k) for k in range(HELD - 1))]
    others = [source.batch(2 * 10**6 + number, k) for k in range(OTHERS)]

    def seen(at: State, taken: int) -> dict[str, Any]:
        return {
            "after": taken,
            "others": look(at, others),
            "held": look(at, held),
            "all": mean_losses(at, source),
        }

    def go_on(at: State) -> list[dict[str, Any]]:
        """Train on from a state that has taken one step more, and look after each of ``AFTER`` steps."""
        found = []
        for taken in range(1, max(k for k in AFTER if k <= total - number) + 1):
            if taken > 1:
                step(at.problem, source.batch(*divmod(number + taken - 1, len(source))), at.optimizer, at.method)
            if taken in AFTER:
                found.append(seen(at, taken))
        return found

    twin = state.copy()
    plain = [seen(twin, 0)]
    start = [p.detach().clone() for p in twin.problem.shared]
    step(twin.problem, batch, twin.optimizer, twin.method)
    stride = math.sqrt(
        sum(float((p.detach() - q).square().sum()) for p, q in zip(twin.problem.shared, start, strict=True))
    )
    plain += go_on(twin)
    length = 0.0
    for design in designs:
        if design == RANDOM and not length:
            continue
        kept = "keep" if design == RANDOM and htr == "transported" else htr
        # Once by hand, to look before any step is taken, and once as training does it: with one seed, the same move.
        there, own = state.copy(), state.copy()
        gradients = collect_problem(there.problem, there.problem.losses(batch))
        by_hand = mover(there, design, held, length, htr=kept, seed=seed)
        by_hand.teleport(there.problem, held, gradients, optimizer=there.optimizer)
        report = moved(own, batch, mover(own, design, held, length, htr=kept, seed=seed))
        if design != RANDOM:
            length = length or report.length
        for before, after in zip(plain, [seen(there, 0), *go_on(own)], strict=True):
            row = {"step": number, "design": design, "htr": htr, "after": after["after"], "length": report.length}
            row["of a step"] = report.length / stride
            for where in ("others", "held"):
                a, b = after[where], before[where]
                ratio = (a["losses"] / b["losses"]).nanmean() - 1.0
                row |= {
                    f"{where} cosine": a["cosine"] - b["cosine"],
                    f"{where} norm": a["norm"] / b["norm"],
                    f"{where} curvature": a["curvature"] / b["curvature"] if b["curvature"] else math.nan,
                    f"{where} loss %": 100.0 * float(ratio),
                }
            row["all loss %"] = 100.0 * float((after["all"] / before["all"]).nanmean() - 1.0)
            yield row


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Medians over the states, with quartiles."""
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in (
        "moved by",
        "memory",
        "after",
        "states",
        "of a step",
        "cosine +",
        "norm ×",
        "curvature ×",
        "loss %",
        "held: loss %",
        "all: loss %",
    ):
        found.add_column(heading, justify="left" if heading in ("moved by", "memory") else "right", no_wrap=True)
    keys = dict.fromkeys((row["design"], row["htr"], row["after"]) for row in rows)
    for design, htr, after in sorted(
        keys, key=lambda key: (list(dict.fromkeys(k[0] for k in keys)).index(key[0]), key[1:])
    ):
        own = [r for r in rows if (r["design"], r["htr"], r["after"]) == (design, htr, after)]
        names = (
            "of a step",
            "others cosine",
            "others norm",
            "others curvature",
            "others loss %",
            "held loss %",
            "all loss %",
        )
        found.add_row(design, htr, str(after), str(len(own)), *(spread([row[name] for row in own]) for name in names))
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of values that are finite; of one, itself, and of none nothing that would be drawn."""
    if len(values) < 2:
        return (values[0] if values else math.nan,) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def draw(title: str, rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """What is different by steps since the move: median over the states, and between the quartiles."""
    panels = {
        "smallest cosine, moved - untouched": "others cosine",
        "norm of the mean gradient, moved / untouched": "others norm",
        "losses on the training set, moved / untouched - 1 [%]": "all loss %",
    }
    figure = new_figure(12, 3.6)
    figure.suptitle(title, fontsize=10)
    for number, (heading, name) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, 3, number)
        taken = sorted({row["after"] for row in rows})
        for place, design in enumerate(dict.fromkeys(row["design"] for row in rows)):
            own = [row for row in rows if row["design"] == design]
            found = [[row[name] for row in own if row["after"] == k and math.isfinite(row[name])] for k in taken]
            low, middle, high = zip(*map(quartiles, found), strict=True)
            colour = task_colour(place)
            axes.plot(range(len(taken)), middle, marker="o", markersize=4, color=colour, label=design)
            axes.fill_between(range(len(taken)), low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1.0 if "norm" in name else 0.0, color="grey", linewidth=0.8)
        axes.set_xticks(range(len(taken)), [f"{k:,}" for k in taken])
        axes.set_xlabel("steps since the move", fontsize=9)
        axes.set_title(heading, fontsize=9)
    axes.legend(fontsize=8)
    return save(figure, path)


def spread(values: Sequence[float], digits: int | None = None) -> str:
    """Median, and the quartiles; three figures each, or so many decimals."""
    known = sorted(value for value in values if math.isfinite(value))

    def text(value: float) -> str:
        return f"{value:.3g}" if digits is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")

    if len(known) < 2:
        return text(known[0]) if known else ""
    low, middle, high = quartiles(known)
    return f"{text(middle)} ({text(low)}, {text(high)})"


COLUMNS = {
    "of a step": "length, in steps",
    "others cosine": "cosine +",
    "others norm": "norm ×",
    "others curvature": "curvature ×",
    "held loss %": "losses held, %",
    "all loss %": "training losses, %",
}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that was written here."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v if k in ("design", "htr") else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table: medians over the states, quartiles in brackets."""
    lines = [f"| moved by | memory | after | {' | '.join(COLUMNS.values())} |", "|" + "---|" * (3 + len(COLUMNS))]
    for design, htr, after in dict.fromkeys((row["design"], row["htr"], row["after"]) for row in rows):
        own = [r for r in rows if (r["design"], r["htr"], r["after"]) == (design, htr, after)]
        cells = [spread([row[name] for row in own], digits=2) for name in COLUMNS]
        lines.append(f"| {design} | {htr} | {after:g} | {' | '.join(cells)} |")
    return lines


def by_memory(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table: training losses of moved over untouched runs by what became of the optimiser's memory."""
    designs = list(dict.fromkeys(row["design"] for row in rows))
    taken = sorted({int(row["after"]) for row in rows} - {0})
    heads = [f"{design}, after {after:,}" for design in designs for after in taken]
    lines = [f"| memory | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads))]
    for htr in dict.fromkeys(row["htr"] for row in rows):
        own = [
            [row["all loss %"] for row in rows if (row["htr"], row["design"], row["after"]) == (htr, design, after)]
            for design in designs
            for after in taken
        ]
        lines.append(f"| `{htr}` | {' | '.join(spread(values, digits=1) for values in own)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="+", default=["digits"])
    parser.add_argument("--methods", nargs="+", default=["ls", "fairgrad:alpha=2"])
    parser.add_argument("--designs", nargs="+", default=[*DESIGNS, RANDOM], choices=[*DESIGNS, RANDOM])
    parser.add_argument("--htr", nargs="+", default=["released", "keep"])
    parser.add_argument("--optimizers", nargs="+", default=["own"], choices=["own", "sgd"])
    parser.add_argument("--stages", nargs="+", type=float, default=[0.1, 0.5, 0.85])
    parser.add_argument("--seeds", default="3", help="how many seeds from 0, or a list such as 0,3,7")
    parser.add_argument("--out", type=Path, default=Path("runs/teleport-twins"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    options.out.mkdir(parents=True, exist_ok=True)
    for spec in options.benchmarks:
        choice = resolve_benchmark(parse_choice("benchmark", spec))
        for words in options.methods:
            method = resolve_method(parse_choice("method", words))
            for optimizer in options.optimizers:
                rows = []
                for seed in parse_seeds(options.seeds):
                    for number, total, source, state in states(
                        choice, method, seed=seed, stages=options.stages, optimizer=optimizer
                    ):
                        for htr in options.htr:
                            new = compare(number, total, source, state, options.designs, htr, seed)
                            rows += [{"seed": seed, **row} for row in new]
                title = f"{spec}, {words}, optimiser {optimizer}: moved against untouched, median (quartiles)"
                console.print(table(title, rows))
                stem = f"{spec}-{words}-{optimizer}".replace(":", "-").replace(",", "-").replace("=", "")
                with open(options.out / f"{stem}.csv", "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
                drawn = [row for row in rows if row["htr"] == options.htr[0]]
                print(f"figure: {draw(title, drawn, options.out / f'{stem}.png').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
