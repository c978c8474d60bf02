"""Losses that differentiate by themselves, wherever a step looks at losses without wanting their graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import MicroBatches, Problem, step
from mtl_core.extension import evaluate_without_graph


class Residual(nn.Module):
    """A network u(x) of a differential equation, with dropout and running statistics to leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
        self.scale = nn.Linear(1, 1)


def residual(model: Any, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    u = model.trunk(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=torch.is_grad_enabled())
    return {"equation": (slope + u).square().mean(), "start": model.scale(u[:1]).square().mean()}


class LooksBack:
    """A loss weighting that looks again."""

    needs = "losses"
    takes_present = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return losses.log().sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        self.seen.append(after())


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


def make() -> tuple[Problem, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Residual().double()
    problem = Problem(model, residual, shared=model.trunk, tasks=("equation", "start"))
    return problem, torch.linspace(0, 1, 8, dtype=torch.float64)[:, None], torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("method", [Total, LooksBack])
def test_a_step(method: Callable[[], Any], in_parts: bool) -> None:
    problem, x, optimizer = make()
    found = method()
    for _ in range(3):
        step(problem, MicroBatches(x.chunk(2)) if in_parts else x, optimizer, found)
    if method is LooksBack:
        assert all(bool(torch.isfinite(losses).all()) and not losses.requires_grad for losses in found.seen)


def test_it_leaves_no_trace_but_that_of_one_evaluation() -> None:
    problem, x, _ = make()
    other, _, _ = make()
    torch.manual_seed(1)
    found = evaluate_without_graph(problem, x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    expected = other.losses(x)
    assert torch.equal(torch.get_rng_state(), after)
    assert not found.values.requires_grad
    torch.testing.assert_close(found.values, expected.values.detach())
    for one, two in zip(problem.model.buffers(), other.model.buffers(), strict=True):
        assert torch.equal(one, two)
    assert problem.differentiates


def test_an_error_of_another_kind_is_the_users() -> None:
    def losses(model: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("no such column")

    model = nn.Linear(1, 2)
    problem = Problem(model, losses, shared=model, tasks=("a", "b"))
    with pytest.raises(RuntimeError, match="no such column"):
        evaluate_without_graph(problem, torch.ones(1, 1))
    assert not problem.differentiates
