"""Methods in wrappers in wrappers: where no teleport happens, a step is that of what is wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtl_aggregators import ThreeBatches, available, log_transform, make
from mtl_core import StepReport, step
from mtl_core.testing import small_problem
from mtl_teleport import COST, RandomTeleport


def never(gramian: torch.Tensor) -> bool:
    return False


def still(method: Any) -> COST:
    return COST(method, trigger=never, max_per_epoch=None)


def still_at_random(method: Any) -> RandomTeleport:
    return RandomTeleport(method, length=0.1, trigger=never, max_per_epoch=None)


AROUND: dict[str, Callable[[Any], Any]] = {
    "teleport": still,
    "two teleports": lambda method: still(still(method)),
    "a random one within": lambda method: still(still_at_random(method)),
    "at random around": lambda method: still_at_random(still(method)),
    "logarithms": lambda method: still(log_transform(method, eps=9.0)),
}


def trained(method: Any) -> tuple[list[StepReport], torch.Tensor]:
    problem, rows = small_problem(3)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    # Only methods of three batches know what that is.
    takes_three = any(type(each).__name__ in ("SDMGrad", "MoDo") for each in method.modules())
    reports = []
    for epoch in range(3):
        if hasattr(method, "start_epoch"):
            method.start_epoch(epoch)
        batch = ThreeBatches(rows, rows + 0.1, rows - 0.1) if takes_three else rows
        reports.append(step(problem, batch, optimizer, method))
    return reports, torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", available())
def test_without_a_teleport_it_is_the_step_of_what_is_wrapped(name: str, around: str) -> None:
    plain = log_transform(make(name), eps=9.0) if around == "logarithms" else make(name)
    wanted_reports, wanted = trained(plain)
    reports, found = trained(AROUND[around](make(name)))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert [report.tasks for report in reports] == [report.tasks for report in wanted_reports]
