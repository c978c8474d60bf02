"""Bilevel methods on models that recompute activations: the same weights and parameters as without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtl_aggregators import make
from mtl_core import Problem, step

MODES: dict[str, dict[str, Any]] = {
    "exact": {"hypergradient": "exact"},
    "fused": {"lookahead": "fused"},
    "trial": {},
    "symmetric": {"estimate": "symmetric"},
}


def whole(model: Any, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(model["trunk"], x, use_reentrant=False)
    return found


def part(model: Any, x: Tensor) -> Tensor:
    found: Tensor = model["trunk"][1:](checkpoint(model["trunk"][0], x, use_reentrant=False))
    return found


def nested(model: Any, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(lambda x: part(model, x), x, use_reentrant=False)
    return found


RECOMPUTED: dict[str, Callable[[Any, Tensor], Tensor]] = {"whole": whole, "part": part, "nested": nested}


def train(trunk: Callable[[Any, Tensor], Tensor], mode: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Parameters and weights after three steps."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh()),
            "a": nn.Linear(3, 1),
            "b": nn.Linear(3, 1),
        }
    ).double()

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        z = trunk(model, x)
        return {"a": model["a"](z).square().mean() + 1.0, "b": (model["b"](z) - 2.0).square().mean() + 1.0}

    problem = Problem(model, losses, shared=model["trunk"], tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method = make("marigold", generator=torch.Generator().manual_seed(1), **mode)
    for _ in range(3):
        report = step(problem, torch.randn(5, 4, dtype=torch.float64), optimizer, method, **options)
    assert report.weights is not None
    return torch.cat([*(p.detach().flatten() for p in model.parameters()), report.weights.double()])


@pytest.mark.parametrize("recomputed", RECOMPUTED)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"heads": "weighted"}, {"max_norm": 0.1}], ids=str)
def test_the_same_training_as_without(recomputed: str, mode: str, options: dict[str, Any]) -> None:
    plain = train(lambda model, x: model["trunk"](x), MODES[mode], options)
    found = train(RECOMPUTED[recomputed], MODES[mode], options)
    torch.testing.assert_close(found, plain, rtol=0.0, atol=1e-12)
