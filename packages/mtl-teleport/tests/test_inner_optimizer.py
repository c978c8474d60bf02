from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import mtl_core
from mtl_core import InvalidInputError, Problem
from mtl_teleport import COST, TeleportReport
from mtl_teleport.history import modulated
from mtl_teleport.inner_optimizer import inner_optimizer

Make = Callable[..., tuple[Problem, Any]]


class Delegating:
    """No optimiser by class: everything is handed on."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.base = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


class Outer(Optimizer):
    """An optimiser by class that shares the groups of the one within; its own hooks are never called."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.param_groups, dict(optimizer.defaults))
        self.inside = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inside.step(closure)


def _accelerate(optimizer: Optimizer) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


WRAPPERS: dict[str, Callable[[Optimizer], Any]] = {
    "itself": lambda o: o,
    "delegating": Delegating,
    "outer": Outer,
    "twice": lambda o: Delegating(Outer(o)),
    "accelerate": _accelerate,
}


def _adam() -> tuple[nn.Parameter, torch.optim.Adam]:
    p = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    return p, torch.optim.Adam([p], lr=0.1)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_one_that_makes_the_update(wrap: str) -> None:
    _, adam = _adam()
    assert inner_optimizer(WRAPPERS[wrap](adam)) is adam


@pytest.mark.parametrize("wrong", [None, 3, nn.Linear(1, 1), Delegating])
def test_something_else(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"`optimizer` must be a torch\.optim\.Optimizer, or hold one"):
        inner_optimizer(wrong)


def test_two_of_which_any_might_make_the_update() -> None:
    class Pair:
        def __init__(self) -> None:
            self.first, self.second = _adam()[1], _adam()[1]

    with pytest.raises(InvalidInputError, match="`optimizer` must hold one optimiser at most, got Pair with 2"):
        inner_optimizer(Pair())


def test_the_same_one_under_two_names_is_one() -> None:
    class Twice:
        def __init__(self, optimizer: Optimizer) -> None:
            self.first = self.second = optimizer

    adam = _adam()[1]
    assert inner_optimizer(Twice(adam)) is adam


@pytest.mark.parametrize("mode", ["paper", "released", "betas", "reset"])
@pytest.mark.parametrize("wrap", [w for w in WRAPPERS if w != "itself"])
def test_memory_is_modulated_through_a_wrapper(wrap: str, mode: Any) -> None:
    found = []
    for through in ("itself", wrap):
        p, adam = _adam()
        optimizer = WRAPPERS[through](adam)
        for sigma in (1.0, 0.4, 1.0):
            p.grad = torch.tensor([1.0, -0.5], dtype=torch.float64) * (1 + sigma)
            with modulated(optimizer, sigma, [p], mode=mode):
                optimizer.step()
        found.append((p.detach().clone(), adam.state[p]["exp_avg"].clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_teleport_through_a_wrapper(wrap: str, conflicting: Make) -> None:
    """Through Accelerate's it raised after the weights had moved."""
    found = []
    for through in ("itself", wrap):
        problem, batch = conflicting()
        optimizer = WRAPPERS[through](torch.optim.Adam(problem.model.parameters(), lr=1e-2))
        cost = COST(trigger=lambda gramian: True, max_per_epoch=None)
        torch.manual_seed(0)
        for _ in range(2):
            (report,) = mtl_core.step(problem, batch, optimizer, cost).events
            assert isinstance(report, TeleportReport)
        found.append([p.detach().clone() for p in problem.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_holds_no_optimiser_is_refused_before_anything_moves(conflicting: Make) -> None:
    class Closed:
        __slots__ = ("_hidden",)

        def __init__(self, optimizer: Optimizer) -> None:
            self._hidden = optimizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._hidden, name)

    problem, batch = conflicting()
    before = [p.detach().clone() for p in problem.model.parameters()]
    optimizer: Any = Closed(torch.optim.Adam(problem.model.parameters(), lr=1e-2))
    with pytest.raises(InvalidInputError, match="`optimizer` must be"):
        COST(trigger=lambda gramian: True, max_per_epoch=None).step(problem, batch, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))
