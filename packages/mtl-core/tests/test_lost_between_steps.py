"""What a step needs and the first one had: trainable shared parameters, and losses with their graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import (
    DetachedLossError,
    MicroBatches,
    NoSharedParametersError,
    Problem,
    step,
)


class Weights:
    """Weights that differ, by way of the Gramian."""

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.tensor([0.2, 0.8], dtype=torch.float64)


class OfLosses:
    """The same as a weighting of losses."""

    needs = "losses"
    takes_present = False

    def __call__(self, losses: Tensor) -> Tensor:
        return (losses * torch.tensor([0.2, 0.8], dtype=losses.dtype)).sum()


METHODS: dict[str, Callable[[], Any]] = {"gramian": Weights, "loss": OfLosses}


def made() -> Any:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    return nn.ModuleDict({"trunk": trunk, "a": nn.Linear(6, 1), "b": nn.Linear(6, 1)}).double()


def losses(model: Any, x: Tensor) -> Tensor:
    z = model["trunk"](x)
    return torch.stack([(model[name](z) - k).square().mean() for k, name in enumerate("ab", start=1)])


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_trunk_that_was_frozen_since(method: str, in_parts: bool) -> None:
    model, x = made(), torch.randn(4, 3, dtype=torch.float64)
    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(problem, x, optimizer, METHODS[method]())
    model["trunk"].requires_grad_(False)
    with pytest.raises(NoSharedParametersError, match=r"must be trainable in a step, got 4 parameter\(s\), all frozen"):
        step(problem, MicroBatches(list(x.chunk(2))) if in_parts else x, optimizer, METHODS[method]())


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("form", ["mapping", "joint"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_that_lose_their_graph_later(method: str, form: str, in_parts: bool) -> None:
    model, x = made(), torch.randn(4, 3, dtype=torch.float64)
    attached = True

    def changing(model: Any, x: Tensor) -> Any:
        values = losses(model, x)
        if form == "joint":
            return values if attached else values.detach()
        return {"a": values[0], "b": values[1] if attached else values[1].detach()}

    problem = Problem(model, changing, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(problem, x, optimizer, METHODS[method]())
    attached = False
    with pytest.raises(DetachedLossError, match=r"\['a', 'b'\]" if form == "joint" else r"\['b'\]"):
        step(problem, MicroBatches(list(x.chunk(2))) if in_parts else x, optimizer, METHODS[method]())
