"""A small problem of every form, and its Jacobian by the plainest route."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtl_core.problem import Problem

__all__ = ["TwoLayers", "reference_jacobian", "small_problem"]


class TwoLayers(nn.Module):
    """A tanh trunk with one head per task.

    Args:
        n_tasks: how many heads.
        width: units of the trunk's two layers.
        dtype: of the parameters.
    """

    def __init__(self, n_tasks: int = 2, width: int = 4, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(n_tasks))
        self.to(dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and the heads' outputs."""
        z = self.trunk(x)
        return z, [head(z) for head in self.heads]


def small_problem(
    n_tasks: int = 2,
    *,
    features: bool = False,
    form: Literal["mapping", "stack", "joint"] = "mapping",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Problem, Tensor]:
    """A regression problem on ``TwoLayers`` and a batch for it, the same for the same arguments.

    Args:
        n_tasks: ``m``.
        features: return the trunk's output with the losses.
        form: losses as a mapping, as a stack of scalars, or computed jointly as one tensor.
        dtype: of parameters and batch.
        seed: of both.

    Returns:
        the problem and a batch ``[5, 3]``. The torch seed of the caller is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TwoLayers(n_tasks, dtype=dtype)
        batch = torch.randn(5, 3, dtype=dtype)
    names = tuple(f"task{i}" for i in range(n_tasks))

    def losses(model: nn.Module, x: Tensor) -> object:
        z, outputs = model(x)
        scalars = [((y - i) ** 2).mean() * (i + 1) for i, y in enumerate(outputs)]
        found: object
        if form == "mapping":
            found = dict(zip(names, scalars, strict=True))
        elif form == "stack":
            found = torch.stack(scalars)
        else:  # one tensor for all tasks, computed jointly
            targets = torch.arange(n_tasks, dtype=z.dtype)
            found = ((torch.cat(outputs, dim=1) - targets) ** 2).mean(0) * (targets + 1)
        return (found, z) if features else found

    problem = Problem(model, losses, shared=model.trunk, tasks=names)
    return problem, batch


def reference_jacobian(problem: Problem, batch: Tensor) -> Tensor:
    """The Jacobian by one plain backward pass per task."""
    rows = []
    for i in range(problem.n_tasks):
        problem.model.zero_grad()
        torch.autograd.backward([problem.losses(batch).values[i]])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in problem.shared]
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    problem.model.zero_grad()
    return torch.stack(rows)
