"""What looking at gradients before they are written costs: whole steps with and without, in turn.

    python -m nox -s bench -- safety [--rounds 15] [--tasks 3] [--nets mlp convolutional]

A step of each kind of method on the nets of ``collect``, heads included, with ``check_gradients`` on and off. The two
take turns in one process; the figure is the median of the ratios of neighbouring steps, with its quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from nets import NETS
from torch import Tensor, nn

from mtl_core import Problem, step


class Total:
    """The plain sum: one backward pass, and everything that it wrote is looked at."""

    needs = "losses"
    has_unit_weights = True

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


class Constant:
    """Equal weights from the Gramian: the heads' gradients are looked at, the trunk's by the Gramian anyway."""

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.full((len(gramian),), 1.0 / len(gramian), dtype=torch.float64)


METHODS: dict[str, Any] = {"losses": Total(), "gramian": Constant(), "jacobian": lambda jacobian: jacobian.mean(0)}


def problem_of(net: str, n_tasks: int) -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    trunk, x, width = NETS[net]()
    spatial = net == "convolutional"
    heads = nn.ModuleList(nn.Conv2d(width, 1, 1) if spatial else nn.Linear(width, 1) for _ in range(n_tasks))
    model = nn.ModuleDict({"trunk": trunk, "heads": heads})

    def losses(model: Any, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        z = model["trunk"](x)
        return {str(i): (head(z) - i).square().mean() for i, head in enumerate(model["heads"])}, z

    return Problem(model, losses, shared=trunk, tasks=[str(i) for i in range(n_tasks)]), x


def ratios(net: str, n_tasks: int, method: Any, rounds: int) -> tuple[list[float], list[float]]:
    """Of the time with to that without, round by round; and the times without."""
    problem, x = problem_of(net, n_tasks)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-4)
    found, base = [], []
    for k in range(rounds + 2):
        seconds = {}
        for check in (True, False) if k % 2 else (False, True):
            began = time.perf_counter()
            step(problem, x, optimizer, method, check_gradients=check)
            seconds[check] = time.perf_counter() - began
        if k > 1:
            found.append(seconds[True] / seconds[False])
            base.append(seconds[False])
    return found, base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, nargs="+", default=[3])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=["mlp", "convolutional"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'net':<14} {'m':>3} {'method':<10} {'ms without':>10} {'ratio':>7} {'quartiles':>15}")
    for net in arguments.nets:
        for n_tasks in arguments.tasks:
            for name, method in METHODS.items():
                found, base = ratios(net, n_tasks, method, arguments.rounds)
                low, middle, high = statistics.quantiles(found, n=4)
                print(
                    f"{net:<14} {n_tasks:3d} {name:<10} {statistics.median(base) * 1e3:10.2f} {middle:7.3f} "
                    f"{low:7.3f} {high:7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
