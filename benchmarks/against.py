"""Two states of this repository beside each other: collecting, steps and teleports, measured in turn.

    python -m nox -s bench -- against CHECKOUT [--rounds 12] [--cases collect step teleport]

CHECKOUT is a folder with another state of the repository (`git worktree add FOLDER COMMIT`). Each state has a process
of its own; the two take turns, and each answer is the least of a few repetitions of the processor's time on one thread,
so that what other programs do meanwhile counts as little as it can. Printed are the median over the rounds of this
state's time over the other's, its quartiles, and the ratio of the least times of all.

`collect` is a forward pass and `collect` with features, equal weights and written gradients; `step` a whole step with
Adam; `teleport` one COST step that takes all of its eight adapter steps on four probe batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nets import NETS
from server import Server
from torch import Tensor, nn

from mtl_aggregators import FAMO, LS, MGDA, FairGrad
from mtl_core import Problem, collect, step
from mtl_teleport import COST

METHODS: dict[str, Callable[[], Any]] = {"LS": LS, "FAMO": FAMO, "MGDA": MGDA, "FairGrad": FairGrad}
COLLECTED = (3, 11)
TELEPORTED = ("mlp", "convolutional")


class Whenever:
    """A trigger that always fires."""

    name = "whenever"

    def __call__(self, gramian: Tensor) -> bool:
        return True


class Case:
    """A trunk of `nets` with linear heads."""

    def __init__(self, net: str, n_tasks: int) -> None:
        torch.manual_seed(0)
        trunk, self.x, width = NETS[net]()
        self.model = nn.ModuleDict(
            {"trunk": trunk, "heads": nn.ModuleList(nn.Linear(width, 1) for _ in range(n_tasks))}
        )
        self.tasks = tuple(f"task {k}" for k in range(n_tasks))
        self.problem = Problem(self.model, self.losses, shared="trunk", tasks=self.tasks)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    @staticmethod
    def losses(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        z = model["trunk"](x)
        flat = z.flatten(2).mean(2) if z.ndim == 4 else z
        return torch.stack([(head(flat) - (-1) ** i).square().mean() for i, head in enumerate(model["heads"])]), z

    def collecting(self) -> Callable[[], None]:
        weights = torch.ones(len(self.tasks), dtype=torch.float64)

        def run() -> None:
            values, z = self.losses(self.model, self.x)
            found = collect(dict(zip(self.tasks, values, strict=True)), self.problem.shared, features=z)
            found.host_gramian  # noqa: B018 - computed when it is asked for
            found.assign(found.combine(weights))
            found.assign_heads()
            self.optimizer.zero_grad()

        return run

    def stepping(self, method: Any) -> Callable[[], None]:
        return lambda: step(self.problem, self.x, self.optimizer, method)  # type: ignore[return-value]

    def teleporting(self) -> Callable[[], None]:
        probes = [self.x, *(torch.randn_like(self.x) for _ in range(3))]
        # What becomes of the optimiser's memory is said, since its default has changed, and with it the searches.
        common: dict[str, Any] = {"max_per_epoch": None, "max_steps": 8, "aim": None, "htr": "keep"}
        method = COST(LS(), trigger=Whenever(), probe_batches=probes, **common)
        return self.stepping(method)


def cases(kinds: tuple[str, ...]) -> dict[str, Callable[[], Callable[[], None]]]:
    """Name → what makes the piece of work that is timed."""
    found: dict[str, Callable[[], Callable[[], None]]] = {}
    for net in NETS:
        for m in COLLECTED if "collect" in kinds else ():
            found[f"collect {net} m = {m}"] = lambda net=net, m=m: Case(net, m).collecting()
    for net in ("mlp", "convolutional", "tiny") if "step" in kinds else ():
        for name, make in METHODS.items():
            found[f"step {net} {name}"] = lambda net=net, make=make: Case(net, 3).stepping(make())
    for net in TELEPORTED if "teleport" in kinds else ():
        found[f"teleport {net}"] = lambda net=net: Case(net, 3).teleporting()
    return found


def serve() -> None:
    """Measure what is asked for on the standard input, line by line, with the packages that this process imports."""
    torch.set_num_threads(1)
    known, name, run = cases(("collect", "step", "teleport")), "", lambda: None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["case"] != name:
            name, run = asked["case"], known[asked["case"]]()
            run()
            run()
        times = []
        for _ in range(asked["repeat"]):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
        print(json.dumps({"seconds": min(times)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", help="a folder with another state of this repository")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=["collect", "step", "teleport"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    if arguments.checkout is None:
        parser.error("name the folder of the other state, e.g. one made by `git worktree add FOLDER COMMIT`")
    states = {"this": Server(__file__), "other": Server(__file__, arguments.checkout.resolve())}
    print(f"{'case':<28} {'ms this':>9} {'ms other':>9} {'this / other (quartiles)':>26} {'of the least':>13}")
    for case in cases(tuple(arguments.cases)):
        found: dict[str, list[float]] = {name: [] for name in states}
        for k in range(arguments.rounds):
            for name in list(states)[:: 1 if k % 2 else -1]:
                found[name].append(1e3 * states[name].ask(case=case, repeat=arguments.repeat)["seconds"])
        this, other = found["this"], found["other"]
        ratios = [a / b for a, b in zip(this, other, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(
            f"{case:<28} {statistics.median(this):9.2f} {statistics.median(other):9.2f} "
            f"{f'{middle:.3f} ({low:.3f} to {high:.3f})':>26} {min(this) / min(other):13.3f}",
            flush=True,
        )
    for state in states.values():
        state.end()


if __name__ == "__main__":
    main()
