"""Collecting task gradients: time and peak memory beside TorchJD.

    python -m nox -s bench -- collect [--rounds 5] [--tasks 2 3 11 40] [--nets mlp convolutional transformer tiny]

One backward phase is measured: from evaluated losses to written `.grad`, through the features, with a Gramian and
constant weights on both sides, so that no solver is timed. Times are medians over rounds in which all modes take turns
in one process; memory is the rise of the process's peak resident set over its level before the phase, each mode in a
process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from nets import NETS
from torch import Tensor, nn
from torchjd.aggregation import GramianWeightedAggregator, Weighting
from torchjd.autojac import jac_to_grad, mtl_backward

from mtl_core import collect

MiB = 2**20


class Constant(Weighting):  # type: ignore[misc]
    """Equal weights, through the other library's Gramian path."""

    def forward(self, gramian: Tensor, /) -> Tensor:
        return gramian.new_full((gramian.shape[0],), 1.0 / gramian.shape[0])


class Case:
    """A trunk with ``m`` linear heads, ready for any number of backward phases."""

    def __init__(self, net: str, n_tasks: int) -> None:
        torch.manual_seed(0)
        self.trunk, self.x, width = NETS[net]()
        spatial = net == "convolutional"
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) if spatial else nn.Linear(width, 1) for _ in range(n_tasks))
        self.n_tasks = n_tasks
        self.shared = list(self.trunk.parameters())
        self.head_parameters = list(self.heads.parameters())

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        for p in (*self.shared, *self.head_parameters):
            p.grad = None
        z = self.trunk(self.x)
        return z, [(head(z) - i).square().mean() for i, head in enumerate(self.heads)]

    def ours(self, keep: str, chunk_size: int | None) -> Callable[[Tensor, list[Tensor]], None]:
        weights = torch.full((self.n_tasks,), 1.0 / self.n_tasks, dtype=torch.float64)

        def run(z: Tensor, losses: list[Tensor]) -> None:
            grads = collect(
                losses,
                self.shared,
                features=z if keep == "jacobian" else None,
                heads=self.head_parameters,
                chunk_size=chunk_size,
                keep=keep,  # type: ignore[arg-type]
            )
            assert grads.host_gramian.shape == (self.n_tasks, self.n_tasks)
            grads.assign(grads.combine(weights))

        return run

    def torchjd(self, chunk_size: int | None) -> Callable[[Tensor, list[Tensor]], None]:
        aggregator = GramianWeightedAggregator(Constant())

        def run(z: Tensor, losses: list[Tensor]) -> None:
            mtl_backward(losses, features=z, parallel_chunk_size=chunk_size)
            jac_to_grad(self.shared, aggregator)

        return run

    def modes(self) -> dict[str, Callable[[Tensor, list[Tensor]], None]]:
        found = {
            "sequential": self.ours("jacobian", 1),
            "batched": self.ours("jacobian", self.n_tasks),
            "chosen": self.ours("jacobian", None),
            "gramian only": self.ours("gramian", None),
            "TorchJD vmapped": self.torchjd(None),
            "TorchJD chunk 1": self.torchjd(1),
        }
        if self.n_tasks > 4:
            found["TorchJD chunk 4"] = self.torchjd(4)
        return found


def gradient(case: Case, mode: str) -> Tensor:
    z, losses = case.forward()
    case.modes()[mode](z, losses)
    return torch.cat([p.grad.reshape(-1) for p in case.shared])  # type: ignore[union-attr]


def times(case: Case, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {mode: [] for mode in case.modes()}
    for round_ in range(rounds + 1):
        for mode, run in case.modes().items():
            z, losses = case.forward()
            start = time.perf_counter()
            run(z, losses)
            if round_:
                found[mode].append(time.perf_counter() - start)
            del z, losses
    return {mode: statistics.median(seconds) for mode, seconds in found.items()}


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(net: str, n_tasks: int, mode: str) -> float:
    """Rise of the peak resident set during one backward phase, in bytes, in this process."""
    case = Case(net, n_tasks)
    small = Case(net, 5)
    small.modes()[mode](*small.forward())  # libraries allocate their scratch once
    del small
    run = case.modes()[mode]
    z, losses = case.forward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run(z, losses)
    return resident("VmHWM") - before


def ratio(value: float, reference: float) -> str:
    """As a column; a dash where the reference is nothing that the process had to ask for."""
    return f"{value / reference:9.2f}" if reference else f"{'-':>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 11, 40])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak(arguments.nets[0], arguments.tasks[0], arguments.peak)))
        return
    for net in arguments.nets:
        for n_tasks in arguments.tasks:
            case = Case(net, n_tasks)
            size = sum(p.numel() for p in case.shared)
            print(f"\n{net}: m = {n_tasks}, d = {size:,}, Jacobian {n_tasks * size * 4 / MiB:.0f} MiB", flush=True)
            expected = gradient(case, "sequential")
            seconds = times(case, arguments.rounds)
            best = min(value for mode, value in seconds.items() if mode.startswith("TorchJD"))
            memory = {}
            for mode in seconds:
                command = [sys.executable, __file__, "--nets", net, "--tasks", str(n_tasks), "--peak", mode]
                command += ["--threads", str(arguments.threads)]
                printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
                memory[mode] = float(json.loads(printed))
            least = min(value for mode, value in memory.items() if mode.startswith("TorchJD"))
            fastest = min((m for m in seconds if m.startswith("TorchJD")), key=seconds.__getitem__)
            print(f"  {'mode':<16} {'ms':>9} {'/ best':>7} {'MiB':>8} {'/ fastest':>9} {'/ least':>9} {'error':>9}")
            for mode, value in seconds.items():
                found = gradient(case, mode)
                error = float((found - expected).norm() / expected.norm())
                print(
                    f"  {mode:<16} {value * 1e3:9.2f} {value / best:7.2f} {memory[mode] / MiB:8.1f} "
                    f"{ratio(memory[mode], memory[fastest])} {ratio(memory[mode], least)} {error:9.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
