"""Losses that differentiate on the way: residuals of differential equations, forces of an energy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import MicroBatches, Problem, step
from mtl_core.preservation import Trace
from mtl_teleport import COST, PeftLoRA, RandomTeleport, TeleportReport
from mtl_teleport.evaluation import evaluate_without_graph


def _residual(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A boundary value, and u'' = -u inside."""
    x = x.detach().requires_grad_()
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return {"inside": (second + u).square().mean(), "boundary": 5 * (u[0] - 1).square().mean()}


def _forces(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    energy = model(x).sum()
    (force,) = torch.autograd.grad(energy, x, create_graph=True)
    return {"energy": (energy - 1).square(), "force": (force + x).square().mean()}


def _problem(losses: Any) -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    tasks = ("inside", "boundary") if losses is _residual else ("energy", "force")
    return Problem(model, losses, shared=model, tasks=tasks), torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("losses", [_residual, _forces])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sharpness": "ascent"},
        {"sharpness": "random"},
        {"search": "penalty"},
        {"sharpness": "random", "search": "penalty", "mode": "eval"},
        {"adapter": "peft"},
    ],
    ids=str,
)
def test_they_are_moved(settings: dict[str, Any], losses: Any, parts: int) -> None:
    if settings.get("adapter") == "peft":
        pytest.importorskip("peft")
        settings = {"adapter": PeftLoRA(rank=2)}
    problem, x = _problem(losses)
    cost = COST(trigger=lambda gramian: True, max_per_epoch=None, max_steps=3, **settings)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    (report,) = step(problem, x if parts == 1 else MicroBatches([x, x]), optimizer, cost).events
    assert isinstance(report, TeleportReport)
    assert report.accepted, report.reason


def test_by_the_control() -> None:
    problem, x = _problem(_residual)
    method = RandomTeleport(length=0.1, trigger=lambda gramian: True, max_per_epoch=None)
    (report,) = step(problem, x, torch.optim.Adam(problem.model.parameters(), lr=1e-3), method).events
    assert isinstance(report, TeleportReport)
    assert report.length == pytest.approx(0.1)


class TestWithoutGraph:
    def test_values_without_a_graph(self) -> None:
        problem, x = _problem(_residual)
        found = evaluate_without_graph(problem, x)
        expected = problem.losses(x)
        assert not found.values.requires_grad
        assert torch.equal(found.values, expected.values.detach())

    def test_the_first_try_leaves_nothing(self) -> None:
        def losses(model: nn.Module, x: Tensor) -> Tensor:
            noise = torch.randn(1, dtype=torch.float64)
            next(model.buffers()).add_(1.0)
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model.get_submodule("layer")(x).sum(), x, create_graph=True)
            return torch.stack([slope.square().mean(), noise.sum() + 0.0 * slope.sum()])

        model = nn.ModuleDict({"layer": nn.Linear(1, 1).double()})
        model.register_buffer("count", torch.zeros(1))
        problem = Problem(model, losses, shared="layer", tasks=("a", "b"))
        x = torch.ones(2, 1, dtype=torch.float64)
        trace = Trace(model)
        found = evaluate_without_graph(problem, x)
        assert int(model.count) == 1
        after = torch.rand(1)
        trace.restore()
        assert torch.equal(problem.losses(x).values.detach(), found.values)
        assert torch.equal(torch.rand(1), after)

    def test_other_errors_are_not_swallowed(self) -> None:
        calls = 0

        def losses(model: nn.Module, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            raise RuntimeError("mine")

        layer = nn.Linear(1, 1)
        problem = Problem(layer, losses, shared=layer, tasks=("a",))
        with pytest.raises(RuntimeError, match="mine"):
            evaluate_without_graph(problem, torch.ones(1, 1))
        assert calls == 1
