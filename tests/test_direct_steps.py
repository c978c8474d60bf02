"""Methods that own their step, called without ``mtl_core.step`` around them: an error leaves no trace either."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import FAMO, MGDA, GradDrop, MoCo, available, log_transform, make
from mtl_core import Method, Problem, StepOptions, TaskSampling, UpdateEvery
from mtl_core.extension import offers
from mtl_teleport import COST, Always, MemoryOnly, RandomTeleport


class Failure(Exception):
    """Injected."""


MOVES: dict[str, Any] = {"trigger": Always(), "steps_per_epoch": 1}
METHODS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: make(name)) for name in available() if offers(make(name), Method)},  # type: ignore[misc]
    "COST": lambda: COST(FAMO(), max_steps=2, **MOVES),
    "RandomTeleport": lambda: RandomTeleport(MoCo(), length=0.1, **MOVES),
    "MemoryOnly": lambda: MemoryOnly(MoCo(), steps=[0, 1, 2], sigmas=[0.5, 0.5, -0.5]),
    "TaskSampling": lambda: TaskSampling(FAMO(), n_tasks=1),
    "UpdateEvery": lambda: UpdateEvery(MGDA(), steps=2),
    "log_transform": lambda: log_transform(GradDrop()),
}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("stage", ["losses", "second evaluation", "update"])
@pytest.mark.parametrize("name", METHODS)
def test_an_error_leaves_everything_as_it_was(name: str, stage: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(
        [
            nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3)),
            nn.Linear(6, 2),
            nn.Linear(6, 2),
        ]
    ).double()
    batch, fails, seen = torch.randn(33, 4, dtype=torch.float64), False, 0

    def losses(m: Any, x: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        if fails and seen == {"losses": 1, "second evaluation": 2}.get(stage):
            raise Failure
        z = m[0](x)
        return torch.stack([(m[1](z) - 2).square().mean(), (m[2](z) + 2).square().mean()])

    def refuse(*_: Any) -> None:
        if fails and stage == "update":
            raise Failure

    problem = Problem(model, losses, shared=model[0], tasks=("a", "b"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    optimizer.register_step_pre_hook(refuse)
    method = METHODS[name]()
    method.step(problem, batch, optimizer)

    def now() -> tuple[Any, ...]:
        parts = (model.state_dict(), optimizer.state_dict(), method.state_dict(), torch.get_rng_state())
        return copy.deepcopy(parts)

    before, fails, seen = now(), True, 0
    try:
        method.step(problem, batch, optimizer, options=StepOptions(reversible=True))
    except Failure:
        assert all(map(_same, now(), before))
    else:
        assert stage == "second evaluation"  # methods that look once
        assert seen == 1
