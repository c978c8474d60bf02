"""What a step costs beside its arithmetic: the smallest net, where everything else shows.

    python -m nox -s bench -- overhead [--rounds 40] [--steps 50] [--against CHECKOUT]

Three tasks on a trunk of one layer of four units, batch 8, SGD: a step of LS and of MGDA beside a plain loop that does
the same work by hand (forward pass, the same backward passes, the same weights, the optimiser's step) and checks
nothing. Ours and the plain loop take turns, `--steps` at a time; the figures are medians over the rounds, of the
processor's time on one thread. The calls of Python functions in one step are counted too.

With `--against`, a folder that holds another state of this repository (`git worktree add FOLDER COMMIT`), the packages
there are measured in a process of their own, in turn with these; the last column is the median of the ratios of
neighbouring rounds, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from server import Server
from torch import Tensor, nn

from mtl_aggregators import LS, MGDA
from mtl_core import Problem, step

METHODS: dict[str, Callable[[], Any]] = {"LS": LS, "MGDA": MGDA}
TASKS = ("a", "b", "c")


def losses_of(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = model["trunk"](x)
    return torch.stack([(head(z) - i).square().mean() for i, head in enumerate(model["heads"])]), z


class Case:
    """The smallest net, a method, and a step of it by us or by hand."""

    def __init__(self, method: str) -> None:
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.model = nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.Linear(4, 1) for _ in TASKS)})
        self.x = torch.randn(8, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.problem = Problem(self.model, losses_of, shared=trunk, tasks=TASKS)
        self.method = METHODS[method]()
        self.by_hand = self.plain_sum if method == "LS" else self.plain_jacobian

    def ours(self) -> None:
        step(self.problem, self.x, self.optimizer, self.method)

    def plain_sum(self) -> None:
        self.optimizer.zero_grad()
        losses_of(self.model, self.x)[0].sum().backward()
        self.optimizer.step()

    def plain_jacobian(self) -> None:
        self.optimizer.zero_grad()
        losses, z = losses_of(self.model, self.x)
        trunk = list(self.model["trunk"].parameters())
        at_features = []
        for loss, head in zip(losses.unbind(), self.model["heads"], strict=True):
            own = list(head.parameters())
            found = torch.autograd.grad(loss, (z, *own), retain_graph=True)
            at_features.append(found[0])
            for parameter, gradient in zip(own, found[1:], strict=True):
                parameter.grad = gradient
        rows = [torch.autograd.grad(z, trunk, seed, retain_graph=True) for seed in at_features]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        wide = jacobian.double()
        vector = self.method.weights(wide @ wide.T).to(jacobian.dtype) @ jacobian
        for parameter, part in zip(trunk, vector.split([p.numel() for p in trunk]), strict=True):
            parameter.grad = part.view_as(parameter)
        self.optimizer.step()


def seconds(run: Callable[[], None], steps: int) -> float:
    """Of the processor, on one thread: time on the clock would count what other processes do in between."""
    began = time.process_time()
    for _ in range(steps):
        run()
    return (time.process_time() - began) / steps


def calls(run: Callable[[], None]) -> dict[str, int]:
    """How many functions, Python's and others, one call of another enters."""
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        found[event] += 1

    sys.setprofile(count)
    run()
    sys.setprofile(None)
    return {"python": found["call"], "all": found["call"] + found["c_call"]}


def serve() -> None:
    """Measure what is asked for on the standard input, line by line, with the packages that this process imports."""
    torch.set_num_threads(1)
    cases = {name: Case(name) for name in METHODS}
    for case in cases.values():
        seconds(case.ours, 20)
        seconds(case.by_hand, 20)
    for line in sys.stdin:
        asked = json.loads(line)
        case = cases[asked["method"]]
        if asked["steps"]:
            found: dict[str, Any] = {"ours": seconds(case.ours, asked["steps"])}
            found["plain"] = seconds(case.by_hand, asked["steps"])
        else:
            found = calls(case.ours)
        print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--against", type=Path, help="a folder with another state of this repository")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    states = {"this": Server(__file__)}
    if arguments.against is not None:
        states["other"] = Server(__file__, arguments.against.resolve())
    print(f"{'method':<7} {'state':<6} {'calls':>6} {'all':>6} {'us ours':>8} {'us plain':>8} {'ours / plain':>12}")
    for method in METHODS:
        counted = {name: state.ask(method=method, steps=0) for name, state in states.items()}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in states}
        for k in range(arguments.rounds):
            for name in list(states)[:: 1 if k % 2 else -1]:
                found[name].append(states[name].ask(method=method, steps=arguments.steps))
        for name, rounds in found.items():
            ours, plain = ([1e6 * each[which] for each in rounds] for which in ("ours", "plain"))
            ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
            print(
                f"{method:<7} {name:<6} {counted[name]['python']:6.0f} {counted[name]['all']:6.0f} "
                f"{statistics.median(ours):8.0f} {statistics.median(plain):8.0f} {ratio:12.2f}",
                flush=True,
            )
        if "other" in found:
            pairs = zip(found["this"], found["other"], strict=True)
            low, middle, high = statistics.quantiles([a["ours"] / b["ours"] for a, b in pairs], n=4)
            print(f"{method:<7} this / other: {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)
    for state in states.values():
        state.end()


if __name__ == "__main__":
    main()
