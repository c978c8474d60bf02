"""Losses that differentiate the model by ``backward()`` change no step, whatever they leave in ``.grad`` or clear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import available, log_transform, make
from mtl_core import InvalidInputError, MicroBatches, Problem
from mtl_core.extension import CountsEpochs
from mtl_teleport import COST, Always

ROUTES = ("alone", "micro-batches", "log transform", "in COST", "Gramian")


def made(way: str) -> tuple[Problem, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"trunk": nn.Sequential(nn.Linear(5, 8), nn.Tanh()), **{name: nn.Linear(8, 1) for name in "abc"}}
    )

    def on(x: Tensor) -> dict[str, Tensor]:
        z = model["trunk"](x)
        aims = {"a": 2.0 + x[:, 0], "b": -2.0 - x[:, 0], "c": x[:, 1].sin()}
        return {n: 1.5 + (model[n](z)[:, 0] - aims[n]).square().mean() for n in "abc"}

    def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        # A step of the inputs against the model, as adversarial training takes it.
        attacked = x.clone().requires_grad_()
        with torch.enable_grad():
            total = torch.stack(list(on(attacked).values())).sum()
            if way == "by itself":
                (slope,) = torch.autograd.grad(total, attacked)
            else:
                total.backward()
                assert attacked.grad is not None
                slope = attacked.grad
            if way == "cleared":
                model.zero_grad()
        return on(x + 0.1 * slope.sign())

    problem = Problem(model, losses, shared="trunk", tasks=tuple("abc"))
    return problem, torch.optim.SGD(model.parameters(), lr=0.02)


def trained(name: str, route: str, way: str) -> list[Tensor]:
    problem, optimizer = made(way)
    torch.manual_seed(1)
    method: Any = make(name)
    if route == "log transform":
        method = log_transform(method)
    if route == "in COST":
        method = COST(method, trigger=Always(), max_per_epoch=None, max_steps=2, lr=1e-2)
    options: dict[str, Any] = {"keep": "gramian"} if route == "Gramian" else {}
    drawn = torch.Generator().manual_seed(2)
    for number in range(3):
        x = torch.randn(12, 5, generator=drawn)
        batch: Any = MicroBatches(list(x.chunk(3))) if route == "micro-batches" else x
        if isinstance(method, CountsEpochs):
            method.start_epoch(number)
        mtl_core.step(problem, batch, optimizer, method, **options)
    return [parameter.detach().clone() for parameter in problem.model.parameters()]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", available())
def test_the_step_is_that_of_losses_that_leave_no_gradients(name: str, route: str) -> None:
    try:
        wanted = trained(name, route, "by itself")
    except InvalidInputError as error:
        pytest.skip(f"no such step: {str(error)[:60]}")
    for way in ("left", "cleared"):
        if route == "in COST":
            with pytest.raises(InvalidInputError, match=r"must differentiate by torch.autograd.grad\(value, inputs\)"):
                trained(name, route, way)
            continue
        for found, expected in zip(trained(name, route, way), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", ["left", "cleared"])
def test_what_the_user_has_in_grad_stays(way: str) -> None:
    problem, _ = made(way)
    held = torch.ones_like(problem.shared[0])
    problem.shared[0].grad = held
    problem.losses(torch.ones(4, 5))
    assert problem.shared[0].grad is held
    assert held.unique().tolist() == [1.0]
    assert all(p.grad is None for p in problem.heads)
