"""A step with one gradient per task on the papers' networks, beside a loop of plain backward passes of the same work.

    python -m nox -s bench -- segnet_step [--rounds 15] [--nets split mtan] [--width 0.25] [--size 64 96] [--batch 2]

The loop is what one writes without a library: one forward pass, for each task one ``torch.autograd.grad`` through its
head and all that is shared, the sum of the shared gradients written to ``.grad`` beside the heads', one step of Adam.
Ours is ``mtl_core.step`` on the same network, losses, batch and optimiser, with the sum of the gradients' rows ("sum":
a matrix is made), with equal weights from the Gramian ("gramian": the Gramian is computed in float64) and with FairGrad
(the Gramian, its solver and the weighted sum). Both take turns in one process, each on a network of its own; which goes
first changes. A ratio is the ratio of the medians, of CPU time, which other processes on the machine do not add to, and
of wall time. The exit code is 1 if FairGrad's ratio of CPU time is above 1.05.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtl_aggregators import FairGrad
from mtl_benchmarks.models import NYUV2_OUTPUTS, SegNetMTAN, SegNetSplit
from mtl_benchmarks.scenes import Scenes, scene_losses
from mtl_core import Problem, step

BOUND = 1.05
NETS: dict[str, Any] = {"split": SegNetSplit, "mtan": SegNetMTAN}


class Constant:
    """Equal weights, by way of the Gramian."""

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


METHODS: dict[str, Callable[[], Any]] = {
    "sum": lambda: lambda jacobian: jacobian.sum(0),
    "gramian": Constant,
    "fairgrad": FairGrad,
}


def scenes(batch: int, height: int, width: int) -> Scenes:
    """Made-up pictures with valid maps."""
    g = torch.Generator().manual_seed(0)
    normals = nn.functional.normalize(torch.randn(batch, 3, height, width, generator=g), dim=1)
    labels = torch.randint(13, (batch, height, width), generator=g)
    depth = 1 + torch.rand(batch, 1, height, width, generator=g)
    return Scenes.of(torch.rand(batch, 3, height, width, generator=g), labels, depth, normals)


def losses(model: Any, batch: Scenes) -> tuple[dict[str, Tensor | None], Any]:
    features = model.features(batch.images)
    own = features if isinstance(features, dict) else dict.fromkeys(model.tasks, features)
    return scene_losses({task: model.predict(task, own[task]) for task in model.tasks}, batch), features


class ByHand:
    """One forward pass, one backward pass per task, one step."""

    def __init__(self, model: nn.Module, batch: Scenes) -> None:
        self.model, self.batch = model, batch
        self.shared = model.shared_parameters()  # type: ignore[operator]
        self.own = {task: model.task_parameters(task) for task in model.tasks}  # type: ignore[operator, union-attr]
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def __call__(self) -> None:
        found = {task: loss for task, loss in losses(self.model, self.batch)[0].items() if loss is not None}
        total: list[Tensor | None] = [None] * len(self.shared)
        for k, (task, loss) in enumerate(found.items()):
            inputs = [*self.shared, *self.own[task]]
            grads = torch.autograd.grad(loss, inputs, retain_graph=k + 1 < len(found), allow_unused=True)
            for i, grad in enumerate(grads[: len(self.shared)]):
                if grad is not None:
                    before = total[i]
                    total[i] = grad if before is None else before.add_(grad)
            for parameter, grad in zip(self.own[task], grads[len(self.shared) :], strict=True):
                parameter.grad = grad
        for parameter, grad in zip(self.shared, total, strict=True):
            parameter.grad = grad
        self.optimizer.step()


class Ours:
    """The same by ``mtl_core.step``."""

    def __init__(self, model: nn.Module, batch: Scenes, method: Any) -> None:
        self.batch, self.method = batch, method
        self.problem = Problem(model, losses, shared=model.shared_parameters(), tasks=model.tasks)  # type: ignore[operator, arg-type]
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def __call__(self) -> None:
        step(self.problem, self.batch, self.optimizer, self.method)


def measure(net: str, arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """CPU and wall time of every kind of step: medians over the rounds, in seconds."""
    torch.manual_seed(0)
    model = NETS[net](NYUV2_OUTPUTS, width=arguments.width)
    batch = scenes(arguments.batch, *arguments.size)
    kinds: dict[str, Callable[[], None]] = {"by hand": ByHand(copy.deepcopy(model), batch)}
    kinds |= {name: Ours(copy.deepcopy(model), batch, make()) for name, make in METHODS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for k in range(arguments.rounds + 2):
        for name in list(kinds) if k % 2 else reversed(list(kinds)):
            began = time.process_time(), time.perf_counter()
            kinds[name]()
            if k > 1:
                times[name].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return {
        name: (statistics.median(c for c, _ in rows), statistics.median(w for _, w in rows))
        for name, rows in times.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", type=int, nargs=2, default=[64, 96])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    worst = 0.0
    print(f"| network | by hand, CPU time | {' | '.join(f'{n}: CPU, wall' for n in METHODS)} |")
    print(f"|---|---|{'---|' * len(METHODS)}")
    for net in arguments.nets:
        found = measure(net, arguments)
        cpu, wall = found["by hand"]
        cells = [f"{found[name][0] / cpu:.3f}, {found[name][1] / wall:.3f}" for name in METHODS]
        print(f"| {net} | {1000 * cpu:.0f} ms | {' | '.join(cells)} |", flush=True)
        worst = max(worst, found["fairgrad"][0] / cpu)
    return int(worst > BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
