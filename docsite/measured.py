"""What a page says of a method beyond its own words: counted and measured while the site is built."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import make
from mtl_core.extension import CountsEpochs, Remembers, offers

__all__ = ["Behaviour", "Passes", "behaviour", "draws", "passes", "remembers"]

N_DRAWS = 200
N_STEPS = 8


@dataclass(frozen=True)
class Passes:
    """Passes through the network in one step, a mean over several steps.

    Attributes:
        forward: evaluations of the losses, counted in whole batches.
        backward: passes back through the shared part.
    """

    forward: float
    backward: float


class _Counted(torch.autograd.Function):
    """Passes its input on, and counts how often a gradient comes back."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, seen: list[int]) -> Tensor:
        ctx.seen = seen
        return z.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.seen[0] += 1
        return gradient, None


@functools.cache
def passes(name: str, n_tasks: int) -> Passes:
    """Count the passes of a method's steps on a network with ``n_tasks`` heads."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(6, 16), nn.Linear(16, n_tasks)
    model = nn.ModuleDict({"trunk": trunk, "heads": heads})
    forward, backward = [0.0], [0]

    def losses(model: Any, batch: Tensor) -> Tensor:
        forward[0] += len(batch) / 12
        z = _Counted.apply(model["trunk"](batch), backward)
        return (model["heads"](torch.tanh(z)) - 1.0).square().mean(0) + 0.1

    tasks = [f"task {k}" for k in range(n_tasks)]
    problem = mtl_core.Problem(model, losses, shared=trunk, tasks=tasks)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = make(name)
    for step in range(2 * N_STEPS):
        if offers(method, CountsEpochs):
            method.start_epoch(step // 2)
        if step == N_STEPS:  # what happens once, at the start, is not the price of a step
            forward[0], backward[0] = 0.0, 0
        mtl_core.step(problem, torch.randn(12, 6), optimizer, method)
    return Passes(forward[0] / N_STEPS, backward[0] / N_STEPS)


def remembers(name: str) -> bool:
    """Whether a method keeps something from step to step that a checkpoint needs."""
    method = make(name)
    return offers(method, Remembers) and bool(method.state_dict())


@functools.cache
def draws(n_tasks: int = 4, size: int = 12) -> tuple[Tensor, ...]:
    """Jacobians whose gradients are up to a hundred times as long as each other, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    lengths = [10.0 ** (2.0 * torch.rand(n_tasks, 1, generator=generator, dtype=torch.float64)) for _ in range(N_DRAWS)]
    unit = [torch.randn(n_tasks, size, generator=generator, dtype=torch.float64) for _ in range(N_DRAWS)]
    return tuple(length * rows / rows.norm(dim=1, keepdim=True) for length, rows in zip(lengths, unit, strict=True))


@dataclass(frozen=True)
class Behaviour:
    """What a method's updates do to first order, over ``draws()``.

    Attributes:
        harm: share of updates that raise some task's loss.
        worst: median of the smallest cosine of a task's gradient with the update.
        shortest: median of the cosine of the shortest gradient with the update.
        longest: the same of the longest.
    """

    harm: float
    worst: float
    shortest: float
    longest: float


@functools.cache
def behaviour(name: str) -> Behaviour | None:
    """Measure a method's updates; None for one that takes no Jacobian."""
    if make(name).facts.needs not in ("gramian", "jacobian"):
        return None
    cosines = []
    for jacobian in draws():
        torch.manual_seed(0)
        try:
            update = make(name)(jacobian).to(jacobian.dtype)
        except mtl_core.InvalidInputError:
            return None  # it needs the losses beside the gradients
        lengths = jacobian.norm(dim=1)
        cosine = jacobian @ update / (lengths * update.norm().clamp_min(1e-300))
        cosines.append((cosine.min(), cosine[lengths.argmin()], cosine[lengths.argmax()]))
    worst, shortest, longest = torch.tensor(cosines, dtype=torch.float64).T
    return Behaviour(
        float((worst < -1e-9).double().mean()), float(worst.median()), float(shortest.median()), float(longest.median())
    )
