"""Under a gradient scaler whose scale has grown too far: every method's update is skipped, and learns nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import CRMOGM, ThreeBatches, available, make
from mtl_core import Problem, UpdateEvery, step
from mtl_core.extension import CountsEpochs, TakesSeveralBatches, offers

TASKS = ("a", "b", "c")
WRAPPED: dict[str, Callable[[], Any]] = {
    "every mgda": lambda: UpdateEvery(make("mgda"), steps=2),
    "every gradnorm": lambda: UpdateEvery(make("gradnorm"), steps=2),
    "crmogm fairgrad": lambda: CRMOGM(make("fairgrad")),
}


def method_of(name: str) -> Any:
    method = WRAPPED[name]() if name in WRAPPED else make(name)
    if offers(method, CountsEpochs):
        method.start_epoch(0)
    return method


def three_tasks() -> tuple[Problem, nn.ModuleDict]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(3, 3), **{name: nn.Linear(3, 1) for name in TASKS}})

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        z = model["trunk"](x).tanh()
        return {name: (model[name](z) - 3.0).square().mean() + 1.0 for name in TASKS}

    return Problem(model, losses, shared=model["trunk"], tasks=TASKS), model


@pytest.mark.parametrize("name", [*available(), *WRAPPED])
@pytest.mark.parametrize("first", [True, False])
def test_the_update_is_skipped(name: str, first: bool) -> None:
    problem, model = three_tasks()
    method = method_of(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(6, 3)
    batch = ThreeBatches(x, x, x) if offers(method, TakesSeveralBatches) else x
    if not first:
        step(problem, batch, optimizer, method, scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    before = [p.detach().clone() for p in model.parameters()]
    learnt = str(method.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    report = step(problem, batch, optimizer, method, scaler=scaler)
    assert [event.kind for event in report.events] == ["skipped_update"]
    assert scaler.get_scale() == 2.0**126
    assert bool(torch.isfinite(report.losses).all())
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    if offers(method, TakesSeveralBatches):
        assert str(method.state_dict()) == learnt


@pytest.mark.parametrize("name", ["sdmgrad", "modo"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_of_three_batches_is_enough(name: str, part: int) -> None:
    model = nn.Linear(2, 2)
    problem = Problem(model, lambda model, x: model(x).mean(0) * 1e-2 + 100.0, shared=model, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124)
    parts = [torch.ones(1, 2) for _ in range(3)]
    assert step(problem, ThreeBatches(*parts), optimizer, make(name), scaler=scaler).events == ()
    parts[part] = torch.full((1, 2), 1e5)
    before = [p.detach().clone() for p in model.parameters()]
    report = step(problem, ThreeBatches(*parts), optimizer, make(name), scaler=scaler)
    assert [event.kind for event in report.events] == ["skipped_update"]
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
