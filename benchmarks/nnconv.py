"""The network for molecules with and without a matrix per edge: time and memory of a forward and backward pass.

    python -m nox -s bench -- nnconv [--batch 120] [--width 64] [--rounds 7] [--threads 1]

Ours (`MPNN`) beside the same network of torch-geometric's layers (`GraphMPNN`), with the same numbers in their
parameters and the same molecules: random ones whose sizes follow QM9's (mean 18.0 atoms, deviation 2.9, 3 to 29), as
complete graphs with 5 numbers per edge. First the outputs and all gradients of the two are compared. The two then take
turns in one process; times are medians over rounds. Beside the time on the clock stands the time of the process, which
a busy machine does not stretch as much; the ratio is of the latter. Memory is the rise of the peak resident set over
its level before, each network in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from mtl_benchmarks.models import MPNN, GraphMPNN, GroupedMolecules, MoleculeGroup

MiB = 2**20
TARGETS = {"time": 1 / 8, "memory": 0.1}
NETS: dict[str, type[MPNN | GraphMPNN]] = {"ours": MPNN, "torch-geometric": GraphMPNN}


def molecules(batch: int, *, seed: int = 0) -> GroupedMolecules:
    generator = torch.Generator().manual_seed(seed)
    sizes = (18.0 + 2.9 * torch.randn(batch, generator=generator)).round().clamp(3, 29).long()
    groups = []
    for n in sizes.unique().tolist():
        b = int((sizes == n).sum())
        nodes = torch.randn(b, n, 11, generator=generator)
        groups.append(MoleculeGroup(nodes, torch.rand(b, n, n, 5, generator=generator)))
    return GroupedMolecules(tuple(groups), torch.randperm(batch, generator=generator))


class Case:
    """One of the networks and its batch, with the losses of eleven properties added up."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = NETS[name](width=options.width)
        batch = molecules(options.batch)
        self.batch = batch if name == "ours" else batch.to_graphs()
        self.target = torch.randn(11, options.batch, generator=torch.Generator().manual_seed(1))

    def loss(self) -> Tensor:
        outputs = torch.stack(list(self.model(self.batch).values()))
        return (outputs - self.target).square().mean()

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(), list(self.model.parameters()))


def compare(cases: dict[str, Case]) -> None:
    ours, theirs = cases["ours"], cases["torch-geometric"]
    ours.model.load_state_dict(theirs.model.state_dict())
    with torch.no_grad():
        a, b = (torch.stack(list(case.model(case.batch).values())) for case in (ours, theirs))
    worst = max(float((x - y).norm() / y.norm()) for x, y in zip(ours.gradients(), theirs.gradients(), strict=True))
    print(f"  outputs differ by {float((a - b).norm() / b.norm()):.1e}, gradients by at most {worst:.1e} (relative)")


def times(cases: dict[str, Case], rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """Per network and round: seconds of the process forward, forward and backward, and on the clock for both."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for round_ in range(rounds):
        for name in list(cases)[:: 1 if round_ % 2 == 0 else -1]:
            case = cases[name]
            clock, start = time.perf_counter(), time.process_time()
            loss = case.loss()
            forward = time.process_time() - start
            torch.autograd.grad(loss, list(case.model.parameters()))
            found[name].append((forward, time.process_time() - start, time.perf_counter() - clock))
    return found


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(name: str, options: argparse.Namespace) -> float:
    """Rise of the peak resident set during one forward and backward pass, in bytes."""
    small = argparse.Namespace(batch=4, width=options.width)
    Case(name, small).gradients()  # what is loaded at the first pass does not count
    case = Case(name, options)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    case.gradients()
    return resident("VmHWM") - before


def memory(name: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--peak", name, "--batch", str(options.batch), "--width", str(options.width)]
    command += ["--threads", str(options.threads)]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout))


def verdict(value: float, target: float) -> str:
    return f"target {target:.3f} {'met' if value <= target else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip", nargs="+", choices=["times", "memory"], default=[])
    parser.add_argument("--peak", choices=list(NETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(options.peak, options)))
        return
    batch = molecules(options.batch)
    edges = sum(n * (n - 1) for n in batch.sizes)
    print(f"{options.batch} molecules, {sum(batch.sizes)} atoms, {edges} edges, width {options.width}")
    if "times" not in options.skip:
        cases = {name: Case(name, options) for name in NETS}
        compare(cases)
        found = times(cases, options.rounds)
        print(f"  {'median seconds':<18} {'forward':>9} {'both':>9} {'on the clock':>14}")
        for name, rows in found.items():
            forward, both, clock = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"    {name:<16} {forward:9.3f} {both:9.3f} {clock:14.3f}")
        pairs = list(zip(found["ours"], found["torch-geometric"], strict=True))
        for k, what in ((1, "both"), (2, "both, on the clock")):
            ratios = [theirs[k] / ours[k] for ours, theirs in pairs]
            middle = statistics.median(ratios)
            said = verdict(1 / middle, TARGETS["time"])
            print(f"    {what}: {middle:.1f} × as fast ({min(ratios):.1f} to {max(ratios):.1f})  {said}")
    if "memory" not in options.skip:
        used = {name: memory(name, options) for name in NETS}
        ratio = used["ours"] / used["torch-geometric"]
        print(f"  memory: {', '.join(f'{name} {value / MiB:.0f} MiB' for name, value in used.items())}")
        print(f"    {ratio:.3f} of torch-geometric's  {verdict(ratio, TARGETS['memory'])}")


if __name__ == "__main__":
    main()
