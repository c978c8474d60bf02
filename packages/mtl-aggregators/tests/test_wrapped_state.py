"""Methods around a weighting of one's own that is no module; and steps of one's own with an optimiser that cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import CRMOGM, available, log_transform, make
from mtl_core import InvalidInputError, Method, TaskSampling, UpdateEvery, step
from mtl_core.extension import offers
from mtl_core.testing import small_problem


class Counting:
    """Weights 1, 2, 3, ... of the first task by call; what it remembers is in a dictionary."""

    def __init__(self) -> None:
        self.calls = 0

    def weights(self, gramian: Tensor) -> Tensor:
        self.calls += 1
        found = torch.ones(len(gramian), dtype=torch.float64)
        found[0] = float(self.calls)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = int(state["calls"])


WRAPS: dict[str, Callable[[Any], Any]] = {
    "log_transform": log_transform,
    "CRMOGM": lambda method: CRMOGM(method, alpha=0.5),
    "log_transform of CRMOGM": lambda method: log_transform(CRMOGM(method, alpha=0.5)),
    "CRMOGM in UpdateEvery": lambda method: UpdateEvery(CRMOGM(method, alpha=0.5), steps=2),
    "log_transform of TaskSampling": lambda method: log_transform(TaskSampling(method, n_tasks=2)),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("steps", [1, 3])
def test_training_goes_on_from_a_saved_state(wrap: str, steps: int) -> None:
    problem, batch = small_problem(3)
    method = WRAPS[wrap](Counting())

    def go_on(problem: Any, method: Any, count: int) -> None:
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        for _ in range(count):
            step(problem, batch, optimizer, method)

    go_on(problem, method, steps)
    saved = copy.deepcopy(method.state_dict())
    resumed, inner = copy.deepcopy(problem), Counting()
    twin = WRAPS[wrap](inner)
    twin.load_state_dict(saved)
    assert inner.calls > 0
    go_on(problem, method, 3)
    go_on(resumed, twin, 3)
    for p, q in zip(problem.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


OWNING = [name for name in available() if offers(make(name), Method)]
"""Methods with a step of their own."""


@pytest.mark.parametrize("name", OWNING)
@pytest.mark.parametrize("own", [True, False], ids=["method.step", "step"])
def test_a_step_with_an_optimiser_that_needs_a_closure(name: str, own: bool) -> None:
    problem, batch = small_problem(3)
    optimizer = torch.optim.LBFGS(problem.model.parameters())
    method: Any = make(name)
    before = [p.detach().clone() for p in problem.model.parameters()]
    make_step = method.step if own else lambda *given: step(*given, method)
    with pytest.raises(InvalidInputError, match="closure"):
        make_step(problem, batch, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))
