"""What a training step costs as the number of tasks grows: loss-based and bilevel methods beside LS and MGDA.

    python -m nox -s bench -- step [--rounds 9] [--tasks 2 4 8 16 32 64] [--heads weighted unit] [--out figures]

One trunk (six layers of 768 units, batch 128, Adam) with one linear head per task. All modes take turns in one
process, each with a model and optimiser of its own and with an untimed step before the timed one; times are medians
over the rounds, and ratios are medians over the rounds of the ratio to LS in the same round, so that a busy machine
slows both alike. Memory is the rise of the process's peak resident set during a step over its level between steps, each
mode in a process of its own, in copies of the parameters. `--heads weighted` trains each head on its weighted loss, as
the papers' code does; `unit`, the default of `mtl_core.step`, on its own loss, which takes a second pass through the
heads wherever weights are not all 1. What is claimed of MARIGOLD's cost is printed at the end for `weighted`; the exit
code is 1 if it does not hold.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl_aggregators import FAMO, LS, MARIGOLD, MGDA
from mtl_core import Problem, step

MiB = 2**20
WIDTH, LAYERS, BATCH = 768, 6, 128

MODES: dict[str, Callable[[], Any]] = {
    "LS": LS,
    "FAMO": FAMO,
    "MARIGOLD trial": MARIGOLD,
    "MARIGOLD fused": lambda: MARIGOLD(lookahead="fused"),
    "MARIGOLD fused + next": lambda: MARIGOLD(lookahead="fused", probe="next"),
    "MGDA": MGDA,
}


class Net(nn.Module):
    """A trunk with ``m`` linear heads."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(n_tasks))


class Case:
    """A mode, ready to step."""

    def __init__(self, mode: str, n_tasks: int, heads: str) -> None:
        torch.manual_seed(0)
        model = Net(n_tasks)
        names = tuple(f"task{i}" for i in range(n_tasks))

        def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = batch
            z = model.get_submodule("trunk")(x)
            found = [(head(z)[:, 0] - y[:, i]).square().mean() for i, head in enumerate(model.get_submodule("heads"))]
            return torch.stack(found), z

        self.problem = Problem(model, losses, shared=model.trunk, tasks=names)
        self.batch = (torch.randn(BATCH, WIDTH), torch.randn(BATCH, n_tasks))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        self.method = MODES[mode]()
        self.heads: Any = heads
        self.size = sum(p.numel() * p.element_size() for p in model.parameters())

    def step(self) -> None:
        step(self.problem, self.batch, self.optimizer, self.method, heads=self.heads)
        # As a training loop does before the next forward pass, so that no mode is charged for another's gradients.
        self.optimizer.zero_grad(set_to_none=True)


def times(n_tasks: int, heads: str, rounds: int, modes: list[str]) -> dict[str, list[float]]:
    cases = {mode: Case(mode, n_tasks, heads) for mode in modes}
    found: dict[str, list[float]] = {mode: [] for mode in modes}
    for round_ in range(rounds + 2):
        order = modes if round_ % 2 else modes[::-1]
        for mode in order:
            if mode != "MGDA":  # what the mode before left of caches and free memory is not this one's doing
                cases[mode].step()
            start = time.perf_counter()
            cases[mode].step()
            if round_ > 1:
                found[mode].append(time.perf_counter() - start)
    return found


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(n_tasks: int, heads: str, mode: str) -> float:
    """Rise of the peak resident set during one step, in bytes, in this process."""
    case = Case(mode, n_tasks, heads)
    for _ in range(3):
        case.step()
    rises = []
    for _ in range(3):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        case.step()
        rises.append(resident("VmHWM") - before)
    return statistics.median(rises)


def peak_elsewhere(n_tasks: int, heads: str, mode: str, threads: int) -> float:
    command = [sys.executable, __file__, "--tasks", str(n_tasks), "--heads", heads, "--peak", mode]
    # Freed blocks go back to the system at once, so that the resident set follows what is held.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {mode} for {n_tasks} tasks failed:\n{done.stderr}")
    return float(json.loads(done.stdout))


def claims(heads: str, table: dict[int, dict[str, dict[str, float]]]) -> bool:
    """Print what is claimed of MARIGOLD's cost, with the figures it rests on; whether all of it holds."""

    def column(mode: str, field: str) -> list[float]:
        return [rows[mode][field] for rows in table.values()]

    fused, ahead = column("MARIGOLD fused", "ratio"), column("MARIGOLD fused + next", "ratio")
    flat = max(abs(ratio / statistics.mean(fused) - 1.0) for ratio in fused)
    over = max(a / b for a, b in zip(fused, column("FAMO", "ratio"), strict=True))
    copies = max(
        a - b
        for mode in ("MARIGOLD trial", "MARIGOLD fused", "MARIGOLD fused + next")
        for a, b in zip(column(mode, "copies"), column("LS", "copies"), strict=True)
    )
    found = [
        (f"fused costs at most 1.45 LS: {max(fused):.2f}", max(fused) <= 1.45),
        (f"fused is flat in m within 10 %: {100 * flat:.0f} %", flat <= 0.1),
        (f"fused + next costs at most 1.1 LS: {max(ahead):.2f}", max(ahead) <= 1.1),
        (f"fused costs no more than FAMO, but for 3 % of noise: {over:.2f}", over <= 1.03),
        (f"no mode of MARIGOLD holds more than 1 copy of the parameters beyond LS: {copies:.2f}", copies <= 1.0),
    ]
    print(f"\nheads={heads}")
    for text, holds in found:
        print(f"  {'holds' if holds else 'FAILS'}  {text}")
    return all(holds for _, holds in found)


def draw(path: Path, tables: dict[str, dict[int, dict[str, dict[str, float]]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, len(tables), figsize=(5.2 * len(tables), 7.5), squeeze=False)
    for column, (heads, table) in enumerate(tables.items()):
        sizes = list(table)
        for mode in table[sizes[0]]:
            axes[0][column].plot(sizes, [table[m][mode]["ratio"] for m in sizes], "o-", label=mode)
            axes[1][column].plot(sizes, [table[m][mode]["copies"] for m in sizes], "o-", label=mode)
        for row, label in enumerate(("time / LS", "peak memory of a step / parameters")):
            axis = axes[row][column]
            axis.set_xscale("log", base=2)
            low, high = (f(line.get_ydata()[k] for line in axis.lines for k in range(len(sizes))) for f in (min, max))
            if high > 4.0 * low:
                axis.set_yscale("log", base=2)
                axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_xticks(sizes, [str(m) for m in sizes])
            axis.set_xlabel("number of tasks")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        axes[0][column].set_title(f"heads={heads!r}")
    axes[0][0].legend(framealpha=0.5)
    figure.tight_layout()
    path.mkdir(parents=True, exist_ok=True)
    figure.savefig(path / "step.png", dpi=150)
    (path / "step.json").write_text(json.dumps(tables, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--heads", nargs="+", choices=["weighted", "unit"], default=["weighted", "unit"])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder for step.png and step.json")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak(arguments.tasks[0], arguments.heads[0], arguments.peak)))
        return
    tables: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for heads in arguments.heads:
        tables[heads] = {}
        for n_tasks in arguments.tasks:
            size = Case("LS", n_tasks, heads).size
            seconds = times(n_tasks, heads, arguments.rounds, arguments.modes)
            rows: dict[str, dict[str, float]] = {}
            for mode, found in seconds.items():
                ratios = [a / b for a, b in zip(found, seconds["LS"], strict=True)]
                rise = peak_elsewhere(n_tasks, heads, mode, arguments.threads)
                rows[mode] = {
                    "ms": 1e3 * statistics.median(found),
                    "ratio": statistics.median(ratios),
                    "copies": rise / size,
                }
            tables[heads][n_tasks] = rows
            print(f"\nheads={heads}, m = {n_tasks}, parameters {size / MiB:.1f} MiB", flush=True)
            print(f"  {'mode':<22} {'ms':>9} {'/ LS':>6} {'peak / parameters':>18} {'beyond LS':>10}")
            for mode, row in rows.items():
                beyond = row["copies"] - rows["LS"]["copies"]
                print(
                    f"  {mode:<22} {row['ms']:9.2f} {row['ratio']:6.2f} {row['copies']:18.2f} {beyond:10.2f}",
                    flush=True,
                )
    if arguments.out:
        draw(arguments.out, tables)
    # With heads on their own losses the modes other than LS take a second pass through the heads, which grows with m.
    if (
        "weighted" in tables
        and set(arguments.modes) >= set(MODES) - {"MGDA"}
        and not claims("weighted", tables["weighted"])
    ):
        sys.exit(1)


if __name__ == "__main__":
    main()
