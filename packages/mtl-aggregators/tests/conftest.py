"""What the tests of several methods use: how a weight is read off, one small problem, and an independent projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_core.testing import jacobian_of


def _weights_of(method: Any, losses: list[float] | Tensor, present: list[bool] | None = None) -> list[float]:
    """The derivative of the method's scalar by each loss."""
    leaf = torch.as_tensor(losses, dtype=torch.float64).clone().requires_grad_()
    scalar = method(leaf) if present is None else method(leaf, present=torch.tensor(present))
    found: list[float] = torch.autograd.grad(scalar, leaf)[0].tolist()
    return found


def _seen(method: Any, *batches: list[float]) -> None:
    for batch in batches:
        method.after_step(torch.tensor(batch), lambda batch=batch: torch.tensor(batch) * 0.9)


def _trunk_problem() -> tuple[mtl_core.Problem, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5))
    model = torch.nn.ModuleDict({"trunk": trunk, "head": torch.nn.Linear(5, 3)})

    def losses(model: Any, x: Tensor) -> Tensor:
        return (model["head"](model["trunk"](x)) - torch.tensor([0.0, 1.0, -1.0])).square().mean(dim=0)

    problem = mtl_core.Problem(model, losses, shared=model["trunk"], tasks=("a", "b", "c"))
    return problem, torch.randn(12, 4), torch.optim.SGD(model.parameters(), lr=0.05)


def _random_rows(n_tasks: int, seed: int) -> np.ndarray:
    return jacobian_of("generic", n_tasks=n_tasks, n_parameters=6, spread=2.0, seed=seed).numpy()


def _nearest(rows_: np.ndarray, target: np.ndarray, demanded: np.ndarray) -> np.ndarray:
    """The point nearest to ``target`` with ``J x >= h``, by cvxpy."""
    import cvxpy as cp  # here, since every other test does without

    x = cp.Variable(len(target))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - target)), [rows_ @ x >= demanded])
    problem.solve(solver=cp.CLARABEL)
    return np.asarray(x.value)


@pytest.fixture(scope="session")
def weights_of() -> Callable[..., Any]:
    """The derivative of a method's scalar by each loss, as a function."""
    return _weights_of


@pytest.fixture(scope="session")
def seen() -> Callable[..., Any]:
    """A function that shows a method some batches of losses, each a tenth lower afterwards."""
    return _seen


@pytest.fixture(scope="session")
def trunk_problem() -> Callable[..., Any]:
    """A function that makes three regressions on one trunk, a batch and an optimiser, the same every time."""
    return _trunk_problem


@pytest.fixture(scope="session")
def random_rows() -> Callable[..., Any]:
    """A function that draws Jacobians of a given number of tasks."""
    return _random_rows


@pytest.fixture(scope="session")
def nearest() -> Callable[..., Any]:
    """The point nearest to another with ``J x >= h``, by cvxpy, as a function."""
    return _nearest
