"""Where the autocast region is drawn makes no difference: in the losses, around each step, or around all of them."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import available, log_transform, make
from mtl_core import InvalidInputError, MicroBatches, Problem
from mtl_core.extension import CountsEpochs, collect_problem
from mtl_teleport import COST, Always

ROUTES = ("alone", "micro-batches", "log transform", "in COST", "Jacobian", "Gramian")


def region(on: bool) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else contextlib.nullcontext()


def made(inside: bool) -> tuple[Problem, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()),
            **{name: nn.Linear(8, 1) for name in "abc"},
        }
    )

    def losses(model: nn.Module, x: Tensor) -> Any:
        with region(inside):
            z = model.get_submodule("trunk")(x)
            found = {name: model.get_submodule(name)(z)[:, 0] for name in "abc"}
        # Above 1, so that their logarithms are positive, of different sizes; heads pull the trunk to different sides.
        aims = {"a": 2.0 + x[:, 0], "b": -2.0 - x[:, 0], "c": x[:, 1].sin()}
        scale = {"a": 5.0, "b": 1.0, "c": 0.5}
        return {n: 1.5 + scale[n] * (found[n].float() - aims[n]).square().mean() for n in "abc"}

    problem = Problem(model, losses, shared="trunk", tasks=tuple("abc"))
    return problem, torch.optim.SGD(model.parameters(), lr=0.02)


def trained(name: str, route: str, where: str) -> list[Tensor]:
    problem, optimizer = made(where == "losses")
    torch.manual_seed(1)
    method: Any = make(name)
    if route == "log transform":
        method = log_transform(method)
    if route == "in COST":
        method = COST(method, trigger=Always(), max_per_epoch=None, max_steps=2, lr=1e-2)
    keep = {"Jacobian": "jacobian", "Gramian": "gramian"}.get(route)
    options = {} if keep is None else {"keep": keep}
    drawn = torch.Generator().manual_seed(2)
    found = []
    with region(where == "all steps"):
        for number in range(3):
            x = torch.randn(24, 6, generator=drawn)
            batch: Any = MicroBatches(list(x.chunk(3))) if route == "micro-batches" else x
            if isinstance(method, CountsEpochs):
                method.start_epoch(number)
            with region(where == "each step"):
                report = mtl_core.step(problem, batch, optimizer, method, **options)
            found.append(report.losses)
            assert number == 0 or not torch.equal(found[-1], found[-2])
        with torch.no_grad():
            # What the user sees next in the same region are the parameters as they are.
            found.append(problem.model.get_submodule("trunk")(x).float() if where == "all steps" else torch.empty(0))
    with torch.no_grad(), region(where == "all steps"):
        fresh = problem.model.get_submodule("trunk")(x).float() if where == "all steps" else torch.empty(0)
    assert torch.equal(found.pop(), fresh)
    return [*found, *(p.detach() for p in problem.model.parameters())]


REFUSED = re.compile("needs three independent batches|must be collected to be read|measures one graph|two Jacobians")
"""Routes that a method does not go, whatever the region; `test_routes.py` has the table."""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", available())
def test_a_region_around_steps_is_one_in_the_losses(name: str, route: str) -> None:
    try:
        expected = trained(name, route, "losses")
    except InvalidInputError as error:
        if not REFUSED.search(str(error)):
            raise
        pytest.skip(f"refused: {error}")
    for where in ("each step", "all steps"):
        for p, q in zip(trained(name, route, where), expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", available())
def test_a_method_by_hand_is_the_same_within_a_region(name: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    matrix, losses = torch.randn(3, 200, generator=drawn), torch.rand(3, generator=drawn) + 1.5
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        method: Any = make(name)
        if isinstance(method, CountsEpochs):
            method.start_epoch(0)
        needs = method.facts.needs
        if needs == "losses" and hasattr(method, "weights"):
            pytest.skip("a method that owns its step and is not called by hand")
        with region(on):
            try:
                found.append(method(losses.clone()) if needs == "losses" else method(matrix.clone()))
            except (NotImplementedError, InvalidInputError, TypeError) as error:
                pytest.skip(f"not called by hand: {error}")
    assert torch.equal(*found)


def test_gradients_by_hand_are_the_same_within_a_region() -> None:
    found = []
    for on in (False, True):
        problem, _ = made(True)
        losses = problem.losses(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)))
        with region(on):
            gradients = collect_problem(problem, losses)
            by_hand = mtl_core.collect(
                dict(zip("abc", problem.losses(torch.ones(2, 6)).values, strict=True)), problem.shared
            )
            gradients.assign(make("fairgrad")(gradients))
            found.append(
                [
                    gradients.matrix,
                    gradients.gramian,
                    by_hand.matrix,
                    mtl_core.cosines(gradients),
                    *(p.grad for p in problem.shared if p.grad is not None),
                ]
            )
    assert len(found[0]) == 8
    for p, q in zip(*found, strict=True):
        assert torch.equal(p, q)
