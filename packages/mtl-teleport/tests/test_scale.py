"""A search has no scale: losses times a power of two are moved alike, as far as their dtype reaches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem
from mtl_teleport import COST, Always, LoRA
from mtl_teleport.sharpness.point import norm

KINDS: dict[str, dict[str, Any]] = {
    "exact": {"sharpness": "exact"},
    "ascent": {"sharpness": "ascent"},
    "random": {"sharpness": "random"},
    "newton": {"sharpness": "newton"},
    "look-ahead": {"sharpness": "look-ahead"},
    "flat": {"sharpness": "flat"},
    "conflict": {"conflict_weight": 1.0},
    "hold": {"conflict_weight": 1.0, "hold_sharpness": True},
}


def _move(scale: float, settings: dict[str, Any]) -> tuple[Tensor, Any]:
    """The move of the shared parameters, and its report."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(3, 6), nn.Tanh()), "head": nn.Linear(6, 2)})
    x, y = torch.randn(16, 3), 2 + torch.randn(16)

    def losses(m: Any, _: object) -> dict[str, Tensor]:
        z = m["head"](m["trunk"](x)).sum(1)
        return {"a": 5 * ((z - y).square().mean() + 1) * scale, "b": ((z + y).square().mean() + 1) * scale}

    problem = Problem(model, losses, shared=model["trunk"], tasks=("a", "b"))
    before = torch.cat([p.detach().flatten() for p in problem.shared]).clone()
    # The step to come is that of the losses as they are: with them its length would change, too.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 / scale)
    cost = COST(
        trigger=Always(),
        max_per_epoch=None,
        aim=None,
        max_steps=4,
        lr=0.02,
        own_step="skip",
        adapter=LoRA(2),
        **settings,
    )
    (report,) = mtl_core.step(problem, x, optimizer, cost).events
    return torch.cat([p.detach().flatten() for p in problem.shared]) - before, report


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [-100, -60, -33, 33, 60, 100])
def test_losses_of_any_size_are_moved_alike(kind: str, power: int) -> None:
    """Squares of gradients left single precision from 1e-23 and 1e19 on, and fourth powers from 1e-10 and 1e9."""
    expected, base = _move(1.0, KINDS[kind])
    found, report = _move(2.0**power, KINDS[kind])
    assert base.accepted
    assert base.min_cosine_before < 0
    assert report.accepted
    assert float((found - expected).norm()) < 1e-2 * float(expected.norm())
    assert report.drift == pytest.approx(base.drift, rel=0.02)
    assert report.cosines_after == pytest.approx(base.cosines_after, abs=1e-3)
    assert [n / 2.0**power for n in report.norms_after] == pytest.approx(base.norms_after, rel=1e-3)


def _by_hand(scale: float, dtype: torch.dtype, settings: dict[str, Any]) -> tuple[Tensor, Any]:
    """As ``_move``, without the step: its own update is none of this, and a trigger looks at squares."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(3, 6), nn.Tanh()), "head": nn.Linear(6, 2)}).to(dtype)
    x, y = torch.randn(16, 3).to(dtype), 2 + torch.randn(16).to(dtype)

    def losses(m: Any, _: object) -> dict[str, Tensor]:
        z = m["head"](m["trunk"](x)).sum(1)
        return {"a": 5 * ((z - y).square().mean() + 1) * scale, "b": ((z + y).square().mean() + 1) * scale}

    problem = Problem(model, losses, shared=model["trunk"], tasks=("a", "b"))
    before = torch.cat([p.detach().flatten() for p in problem.shared]).clone()
    gradients = mtl_core.collect(list(problem.losses(x).outputs), problem.shared, tasks=problem.tasks)
    # By squares of the step's gradients: the weights of the tasks, which are equal here.
    cost = COST(balance="equal", aim=None, max_drift=None, max_steps=6, lr=0.02, adapter=LoRA(2), **settings)
    report = cost.teleport(problem, [x], gradients, lr=1e-3)
    return torch.cat([p.detach().flatten() for p in problem.shared]) - before, report


RANGES = [(torch.float64, p) for p in (-480, -400, 400, 500)]
RANGES += [(torch.float32, p) for p in (-118, -90, 90, 110)]


@pytest.mark.parametrize("search", ["projected", "penalty"])
@pytest.mark.parametrize("sharpness", ["random", "ascent", "exact"])
@pytest.mark.parametrize(("dtype", "power"), RANGES, ids=str)
def test_losses_are_held_whatever_their_size(dtype: torch.dtype, power: int, sharpness: str, search: str) -> None:
    """Squares of gradients below 1e-154 are zero in double precision, too; the searches' own are smaller still."""
    settings = {"sharpness": sharpness, "search": search}
    expected, base = _by_hand(1.0, dtype, settings)
    found, report = _by_hand(2.0**power, dtype, settings)
    assert base.accepted
    assert report.accepted, report.reason
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm()) < (1e-2 if dtype == torch.float32 else 1e-5) * float(expected.norm())
    assert report.drift == pytest.approx(base.drift, rel=0.02)


@pytest.mark.parametrize("power", [-1000, -700, -565, -520])
def test_gradients_whose_squares_are_lost_are_refused(power: int) -> None:
    with pytest.raises(mtl_core.InvalidJacobianError, match=r"in 'a', .* in 'b', whose squares"):
        _by_hand(2.0**power, torch.float64, {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_norm_of_entries_of_any_size(dtype: torch.dtype, part: float, sign: int) -> None:
    size = 2.0 ** (sign * int(part * math.log2(torch.finfo(dtype).max)))
    tensors = [
        torch.tensor([[3.0 * size]], dtype=dtype),
        torch.zeros(0, dtype=dtype),
        torch.tensor([4.0], dtype=dtype) * size,
    ]
    assert float(norm(tensors)) == pytest.approx(5.0 * size, rel=1e-2)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_the_norm_of_what_has_none(value: float) -> None:
    found = float(norm([torch.tensor([value, 0.0])]))
    assert found == pytest.approx(value, nan_ok=True)


def test_the_norm_of_complex_numbers() -> None:
    assert float(norm([torch.tensor([3.0 + 4.0j]), torch.tensor([12.0])])) == 13.0
    assert float(norm([torch.tensor([3e30 + 4e30j])])) == pytest.approx(5e30)


@pytest.mark.parametrize("noise_norm", ["global", "tensor"])
def test_noise_on_a_head_of_complex_numbers(noise_norm: Any) -> None:
    """With noise on all parameters the norm of complex ones was no number."""
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4).double()
    model = nn.Module()
    model.register_module("trunk", trunk)
    model.register_parameter("head", nn.Parameter(torch.randn(4, 2, dtype=torch.complex128)))

    def losses(m: Any, x: Tensor) -> Tensor:
        return ((torch.tanh(m.trunk(x)).to(torch.complex128) @ m.head).abs() - 1).square().mean(0) + 1

    problem = Problem(model, losses, shared=trunk, tasks=("a", "b"))
    cost = COST(
        trigger=Always(), max_per_epoch=None, aim=None, max_steps=3, lr=0.02, own_step="skip",
        sharpness="random", probe_noise="all", probe_norm=noise_norm, adapter=LoRA(2),
    )  # fmt: skip
    head = model.head.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (report,) = mtl_core.step(problem, torch.randn(8, 3).double(), optimizer, cost).events
    assert report.kind == "teleport"
    assert report.search_growth[0] == 1.0  # type: ignore[union-attr]
    assert torch.equal(model.head, head)
