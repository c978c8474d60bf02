"""A problem that fails where it is told to, for tests of what an error in a step leaves behind."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_core.problem import Problem

__all__ = ["Fault", "FaultyNet", "faulty_problem"]

Fault = Literal["losses", "backward", "nan loss", "nan gradient", "nan head"]
"""What can go wrong in a forward or backward pass: an error in either, or a number that is not one."""


class _BrokenBackward(torch.autograd.Function):
    """The identity, whose derivative fails or is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fails: bool) -> Tensor:
        ctx.fails = fails
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        if ctx.fails:
            raise RuntimeError("out of memory, as it were, in a backward pass")
        return gradients[0] * float("nan"), None


class FaultyNet(nn.Module):
    """A trunk with batch normalisation and dropout and one head per task; fails on request.

    Args:
        n_tasks: ``m``.

    Attributes:
        fault: what is to go wrong, or ``None``.
        at: in which evaluation of the losses it goes wrong, counted from 1 since ``evaluations`` was set to 0; ``None``
            for each of them.
        evaluations: how many evaluations of the losses there were.
        task: which task's loss or gradient is concerned.
    """

    def __init__(self, n_tasks: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 6), nn.Tanh()
        )
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(n_tasks))
        self.fault: Fault | None = None
        self.at: int | None = 1
        self.evaluations = 0
        self.task = 1

    def losses(self, x: Tensor, tasks: tuple[str, ...], chosen: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of the chosen tasks, and the features."""
        self.evaluations += 1
        fault = self.fault if self.at in (None, self.evaluations) else None
        z = self.trunk(x)
        if fault == "backward":
            z = _BrokenBackward.apply(z, True)  # type: ignore[no-untyped-call]
        found = {}
        for name in chosen:
            i = tasks.index(name)
            mine = i == self.task
            entering = _BrokenBackward.apply(z, False) if fault == "nan gradient" and mine else z  # type: ignore[no-untyped-call]
            weight = self.heads[i].weight
            if fault == "nan head" and mine:
                weight = _BrokenBackward.apply(weight, False)  # type: ignore[no-untyped-call]
            output = nn.functional.linear(entering, weight, self.heads[i].bias)  # type: ignore[arg-type]
            found[name] = (output - i).square().mean() + 0.1
            if fault == "nan loss" and mine:
                found[name] = found[name] * float("nan")
        if fault == "losses":
            raise RuntimeError("out of memory, as it were, in the losses")
        return found, z


def faulty_problem(n_tasks: int = 3, *, seed: int = 0, features: bool = False) -> tuple[Problem, FaultyNet, Tensor]:
    """A problem whose model fails on request, and a batch for it.

    Args:
        n_tasks: ``m``.
        seed: of parameters and batch; the same for the same arguments.
        features: return the trunk's output with the losses.

    Returns:
        the problem in float64, its model, and a batch ``[12, 4]``. A batch may also be a tuple of rows and the names of
        the tasks that have a loss on them. The torch seed of the caller is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FaultyNet(n_tasks).double()
        batch = torch.randn(12, 4, dtype=torch.float64)
    names = tuple(f"task{i}" for i in range(n_tasks))

    def losses(model: nn.Module, batch: Any) -> object:
        assert isinstance(model, FaultyNet)
        rows, chosen = batch if isinstance(batch, tuple) else (batch, names)
        found, z = model.losses(rows, names, chosen)
        return (found, z) if features else found

    return Problem(net, losses, shared=net.trunk, tasks=names), net, batch
