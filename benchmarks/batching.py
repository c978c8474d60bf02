"""When is it quicker to pass all tasks through a trunk at once? The rule by which `collect` chooses, measured.

    python -m nox -s bench -- batching [--rounds 30] [--tasks 2 3 8 40]

Collecting gradients and writing `.grad`, one task after the other and all at once by `vmap`, through the features and
without them, in turns; medians, and ratios of all at once to one after the other. `chosen` marks what the rule batches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from mtl_core import collect
from mtl_core.collecting.differentiation import _MANY, _TINY
from mtl_core.collecting.graph import batches_well


def mlp(width: int, layers: int, batch: int) -> tuple[nn.Module, Tensor, int]:
    stack = [layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*stack), torch.randn(batch, width), width


def convolutional(width: int, batch: int) -> tuple[nn.Module, Tensor, int]:
    stack = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return stack, torch.randn(batch, 1, 12, 24), width


TRUNKS = {
    "MLP 2 x 16, batch 16": lambda: mlp(16, 2, 16),
    "MLP 3 x 32, batch 32": lambda: mlp(32, 3, 32),
    "MLP 3 x 64, batch 64": lambda: mlp(64, 3, 64),
    "MLP 3 x 128, batch 128": lambda: mlp(128, 3, 128),
    "MLP 3 x 256, batch 128": lambda: mlp(256, 3, 128),
    "convolutions of 4, batch 16": lambda: convolutional(4, 16),
    "convolutions of 8, batch 64": lambda: convolutional(8, 64),
}


def measure(name: str, n_tasks: int, rounds: int) -> str:
    torch.manual_seed(0)
    trunk, x, width = TRUNKS[name]()
    heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(n_tasks))
    shared, own = list(trunk.parameters()), list(heads.parameters())
    weights = torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64)

    def run(through: bool, chunk_size: int) -> float:
        z = trunk(x)
        losses = [(head(z) - i).square().mean() for i, head in enumerate(heads)]
        start = time.perf_counter()
        grads = collect(losses, shared, features=z if through else None, heads=own, chunk_size=chunk_size)
        grads.assign(grads.combine(weights))
        return time.perf_counter() - start

    modes = [(through, chunk_size) for through in (True, False) for chunk_size in (1, n_tasks)]
    found: dict[tuple[bool, int], list[float]] = {mode: [] for mode in modes}
    for round_ in range(rounds + 1):
        for mode in modes:
            seconds = run(*mode)
            if round_:
                found[mode].append(seconds)
    ms = {mode: 1e3 * statistics.median(values) for mode, values in found.items()}
    chosen = n_tasks >= _MANY and batches_well([trunk(x)], _TINY)
    mark = " chosen" if chosen else "       "
    ratios = {through: ms[through, n_tasks] / ms[through, 1] for through in (True, False)}
    return (
        f"{name:<28} m = {n_tasks:>2}  features: {ms[True, 1]:7.2f} ms, {ratios[True]:.2f}{mark}  "
        f"without: {ms[False, 1]:7.2f} ms, {ratios[False]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 8, 40])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in TRUNKS:
        for n_tasks in arguments.tasks:
            print(measure(name, n_tasks, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
