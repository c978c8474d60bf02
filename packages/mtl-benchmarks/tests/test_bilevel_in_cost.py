"""Bilevel methods inside a teleport."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import FAMO, MARIGOLD
from mtl_core import Problem, step
from mtl_teleport import COST, LoRA


def conflicting() -> tuple[Problem, Tensor]:
    """Two tasks on one trunk that want opposite outputs, at different scales."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"trunk": nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)), "head": nn.Linear(4, 1)}
    )

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        output = model.get_submodule("head")(model.get_submodule("trunk")(x))[:, 0]
        target = x[:, 0]
        return torch.stack([(output - target).square().mean(), 10.0 * (output + target).square().mean()])

    return Problem(model, losses, shared="trunk", tasks=("up", "down")), torch.randn(32, 4)


MODES: list[dict[str, Any]] = [{}, {"lookahead": "fused"}, {"lookahead": "fused", "probe": "next"}]


@pytest.mark.parametrize("mode", MODES)
def test_marigold_inside_cost(mode: dict[str, Any]) -> None:
    problem, batch = conflicting()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
    method = COST(MARIGOLD(lr=1e-2, **mode), adapter=LoRA(rank=2), max_per_epoch=2, max_steps=3)
    kinds = []
    for epoch in range(2):
        method.start_epoch(epoch)
        for _ in range(5):
            report = step(problem, batch, optimizer, method)
            assert report.weights is not None
            assert float(report.weights.sum()) == pytest.approx(1.0, abs=3e-3)
            kinds += [event.kind for event in report.events]
    assert "teleport" in kinds
    weights = method.method.state_dict()["weight_model._extra_state"]  # type: ignore[union-attr]
    assert bool((weights["parameters"] != 0.0).all())
    assert float(weights["adam"]["steps"].max()) in (9.0, 10.0)  # once a step, teleports or not


@pytest.mark.parametrize("inner", [*(lambda mode=mode: MARIGOLD(lr=1e-2, **mode) for mode in MODES), FAMO])
def test_it_continues_bit_for_bit(inner: Any) -> None:
    problem, batch = conflicting()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)

    def wrapped() -> COST:
        return COST(inner(), adapter=LoRA(rank=2), max_per_epoch=3, max_steps=3, steps_per_epoch=4)

    method = wrapped()
    for _ in range(3):
        step(problem, batch, optimizer, method)
    fresh = wrapped()
    fresh.load_state_dict(method.state_dict())
    found = []
    for each in (method, fresh):
        twin, own = copy.deepcopy((problem, optimizer))
        for _ in range(3):
            step(twin, batch, own, each)
        found.append([p.detach() for p in twin.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
