"""A model that changes between two steps: what is shared follows what was named, or the step says what is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from mtl_core import (
    DetachedLossError,
    InvalidInputError,
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


class LowRank(nn.Module):
    """A layer with a correction of rank one beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.ones(1, layer.in_features, dtype=torch.float64))
        self.up = nn.Parameter(torch.full((layer.out_features, 1), 0.1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def wrap(model: Any) -> None:
    model["trunk"][2] = LowRank(model["trunk"][2])


def replace(model: Any) -> None:
    model["trunk"][2] = nn.Linear(6, 6).double()


CHANGES: dict[str, Callable[[Any], object]] = {
    "weight norm": lambda model: parametrizations.weight_norm(model["trunk"][0]),
    "spectral norm": lambda model: parametrizations.spectral_norm(model["trunk"][0]),
    "pruned": lambda model: prune.l1_unstructured(model["trunk"][0], "weight", amount=0.2),
    "wrapped": wrap,
    "appended": lambda model: model["trunk"].append(nn.Linear(6, 6).double()),
    "replaced": replace,
    "a new head": lambda model: model.add_module("c", nn.Linear(6, 1).double()),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("named", ["module", "pattern"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_into_the_trunk_is_shared(change: str, named: str, method: str) -> None:
    model, x = made(), torch.randn(5, 3, dtype=torch.float64)
    problem = Problem(model, losses, shared=model["trunk"] if named == "module" else "trunk", tasks=("a", "b"))
    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.1), METHODS[method]())
    torch.manual_seed(1)
    CHANGES[change](model)
    model.eval()  # spectral norm takes a step of its own at each evaluation in training
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    shared = list(model["trunk"].parameters())
    expected = torch.autograd.grad(losses(model, x), shared, weights, allow_unused=True)
    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.0), METHODS[method]())
    assert set(map(id, problem.shared)) == set(map(id, shared))
    for parameter, gradient in zip(shared, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "named"),
    [("weight norm", "parameters"), ("replaced", "parameters"), ("trunk", "module"), ("trunk", "parameters")],
)
def test_what_was_named_and_is_gone_is_said_before_anything_moves(change: str, named: str, method: str) -> None:
    model, x = made(), torch.randn(5, 3, dtype=torch.float64)
    given = model["trunk"] if named == "module" else list(model["trunk"].parameters())
    problem = Problem(model, losses, shared=given, tasks=("a", "b"))
    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.1), METHODS[method]())
    if change == "trunk":
        model["trunk"] = made()["trunk"]
    else:
        CHANGES[change](model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=r"`model` must keep what was named as shared.*Make a new Problem"):
        step(problem, x, optimizer, METHODS[method]())
    assert all(torch.equal(now, old) for now, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_trunk_that_was_frozen_since(method: str, in_parts: bool) -> None:
    model, x = made(), torch.randn(4, 3, dtype=torch.float64)
    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(problem, x, optimizer, METHODS[method]())
    model["trunk"].requires_grad_(False)
    with pytest.raises(NoSharedParametersError, match=r"must be trainable for a step, got 4, all frozen"):
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
