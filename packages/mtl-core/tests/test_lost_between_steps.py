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


class Own(nn.Module):
    """A head of several layers, whose loss keeps a graph when it is cut off from the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, z: Tensor) -> Tensor:
        found: Tensor = self.layers(z).square().mean()
        return found


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("cut", [("b",), ("a", "c")], ids=str)
@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_task_that_is_cut_off_from_the_trunk(method: str, at: int, cut: tuple[str, ...], in_parts: bool) -> None:
    """In the first step it was refused; later its head went on alone, without a word, where losses are weighed."""
    model, x = made(), torch.randn(4, 3, dtype=torch.float64)
    for name in "abc":
        model[name] = Own().double()
    now = [0]

    def changing(model: Any, x: Tensor) -> Any:
        z = model["trunk"](x)
        return {name: model[name](z.detach() if now[0] == at and name in cut else z) for name in "abc"}

    class Three:
        def weights(self, gramian: Tensor) -> Tensor:
            return torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    methods: dict[str, Any] = {"gramian": Three(), "loss": Total()}
    problem = Problem(model, changing, shared="trunk", tasks=("a", "b", "c"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch: Any = MicroBatches(list(x.chunk(2))) if in_parts else x
    for now[0] in range(at):
        step(problem, batch, optimizer, methods[method])
    now[0] = at
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DetachedLossError) as refused:
        step(problem, batch, optimizer, methods[method])
    assert refused.value.tasks == cut
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


class Total:
    """The sum of the losses, as a weighting of losses."""

    needs = "losses"
    takes_present = False

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


@pytest.mark.parametrize("method", METHODS)
def test_whatever_way_leads_to_the_trunk_will_do(method: str) -> None:
    """One step through a shared bias, a tied weight, a deep head or the parameters themselves."""
    model, x = made(), torch.randn(4, 3, dtype=torch.float64)
    deep = nn.Sequential(*[nn.Linear(6, 6).double() for _ in range(2000)])
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "bias": lambda z: (z.detach() + model["trunk"][2].bias).square().mean(),
        "tied": lambda z: (z.detach() @ model["trunk"][2].weight).square().mean(),
        "penalty": lambda z: sum(p.square().sum() for p in model["trunk"].parameters()),  # type: ignore[arg-type,return-value]
        "deep": lambda z: deep(z).square().mean(),
        "both": lambda z: (model["b"](z.detach()) + model["a"](z)).square().mean(),
    }
    for way in ways.values():
        problem = Problem(
            model,
            lambda m, x, way=way: {"a": m["a"](m["trunk"](x)).square().mean(), "b": way(m["trunk"](x))},  # type: ignore[misc]
            shared="trunk",
            tasks=("a", "b"),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(2):
            step(problem, x, optimizer, METHODS[method]())
