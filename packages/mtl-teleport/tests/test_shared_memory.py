"""Parameters that share memory with one another or with a buffer cannot be moved one by one: the move is taken back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem
from mtl_core.extension import collect_batch
from mtl_teleport import COST, Always, Dense, RandomTeleport
from mtl_teleport.way_back import WayBack


class Rows(nn.Module):
    """Two parameters, or one and a buffer, which overlap or lie side by side in one tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        base = torch.randn(8, 3, dtype=torch.float64)
        self.first = nn.Parameter(base[:4])
        second = base[4:] if kind == "side by side" else base[2:6]
        if kind == "buffer":
            self.register_buffer("second", second)
        else:
            self.second = nn.Parameter(second)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x @ self.first.T) + torch.tanh(x @ self.second.T)
        z = y @ torch.arange(1.0, 5.0, dtype=y.dtype)
        return torch.stack([(z - 2).square().mean() + 1, 5 * (z + y[:, 1] + 2).square().mean() + 1])


def _problem(kind: str) -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    model = Rows(kind)
    return Problem(model, lambda m, x: m(x), shared=model, tasks=("a", "b")), torch.randn(8, 3, dtype=torch.float64)


def _methods() -> dict[str, Any]:
    common: dict[str, Any] = {"trigger": Always(), "max_per_epoch": None, "own_step": "skip"}
    return {
        "COST": COST(adapter=Dense(), aim=None, max_steps=4, lr=0.02, **common),
        "random": RandomTeleport(length=0.1, **common),
    }


@pytest.mark.parametrize("kind", ["overlapping", "buffer", "side by side"])
@pytest.mark.parametrize("name", ["COST", "random"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_an_accepted_move_is_the_one_that_was_judged(kind: str, name: str, by_hand: bool) -> None:
    """It was reported with losses that it did not have: one wrote over the other, or the buffer's values came back."""
    problem, x = _problem(kind)
    method, before = _methods()[name], copy.deepcopy(problem.model.state_dict())
    if by_hand:
        report = method.teleport(problem, [x], collect_batch(problem, x), lr=0.02)
    else:
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
        (report,) = mtl_core.step(problem, x, optimizer, method).events
    now = problem.losses(x).values.tolist()
    if kind == "side by side":
        assert report.accepted
        assert list(report.losses_after) == pytest.approx(now, rel=1e-12)
    else:
        assert not report.accepted
        assert report.reason.startswith("what was written did not stay")
        assert (report.length, report.sigma) == (0.0, None)
        assert all(torch.equal(value, before[key]) for key, value in problem.model.state_dict().items())


def test_the_way_back_of_overlapping_parameters() -> None:
    base = torch.arange(6.0)
    first, second = nn.Parameter(base[:4]), nn.Parameter(base[2:])
    back = WayBack({"first": first, "second": second}, None)
    back.write({"first": first.detach() + 1, "second": second.detach() + 2})
    assert not back.stands
    back.restore()
    assert base.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_shortest_move_there_is_stands(dtype: torch.dtype) -> None:
    """Far out, where an inner product with the parameters has no digit of the move."""
    p = nn.Parameter(torch.full((3,), 1000.0, dtype=dtype))
    back = WayBack({"p": p}, None)
    back.write({"p": torch.nextafter(p.detach(), torch.full_like(p, torch.inf))})
    assert back.stands
    assert back.kept() == 1.0
    with torch.no_grad():
        p.copy_(torch.nextafter(p, torch.full_like(p, torch.inf)))
    assert not back.stands
    assert back.kept() == 2.0
