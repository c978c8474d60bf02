"""Training through a wrapped optimiser is training with the one inside, whatever a method does with its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import available, make
from mtl_core import InvalidInputError, UpdateEvery, step
from mtl_core.extension import CountsEpochs, offers
from mtl_core.testing import faulty_problem
from mtl_teleport import COST, RandomTeleport

accelerate = pytest.importorskip("accelerate")

METHODS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: make(name)) for name in available()},
    "fused marigold": lambda: make("marigold", lookahead="fused"),
    "symmetric marigold": lambda: make("marigold", estimate="symmetric"),
    "exact marigold": lambda: make("marigold", hypergradient="exact"),
    "every nashmtl": lambda: UpdateEvery(make("nashmtl"), steps=2),
    **{
        f"cost {htr}": (
            lambda htr=htr: COST(
                make("fairgrad"), trigger=lambda gramian: True, max_per_epoch=None, max_steps=2, htr=htr
            )
        )
        for htr in ("released", "paper", "reset", "keep")
    },
    "random": lambda: RandomTeleport(make("ls"), length=0.05, trigger=lambda gramian: True, max_per_epoch=None),
}


def train(name: str, wrap: Callable[[Any], Any], **options: Any) -> tuple[list[Tensor], torch.optim.Optimizer]:
    problem, net, batch = faulty_problem()
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    method = METHODS[name]()
    if offers(method, CountsEpochs):
        method.start_epoch(0)
    torch.manual_seed(3)
    optimizer = wrap(adam)
    for _ in range(5):
        step(problem, batch, optimizer, method, **options)
    return [p.detach() for p in net.parameters()], adam


@pytest.mark.parametrize("name", METHODS)
def test_accelerate(name: str) -> None:
    bare, adam = train(name, lambda optimizer: optimizer)
    wrapped, inner = train(name, accelerate.Accelerator(cpu=True).prepare)
    for p, q in zip(bare, wrapped, strict=True):
        assert torch.equal(p, q)
    steps = [float(state["step"]) for state in adam.state.values()]
    assert [float(state["step"]) for state in inner.state.values()] == steps


class Holding:
    """A wrapper that nobody knows and that hands everything on."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.inside = optimizer
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        self.inside.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inside.zero_grad(set_to_none)


@pytest.mark.parametrize("name", METHODS)
def test_a_wrapper_that_nobody_knows(name: str) -> None:
    """As the optimiser inside, or refused before anything moves where its step would be tried beforehand."""
    if "marigold" in name and "fused" not in name and "exact" not in name:
        problem, net, batch = faulty_problem()
        before = [p.detach().clone() for p in net.parameters()]
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        with pytest.raises(InvalidInputError, match=r"got Holding, which holds another.*Give optimizer\.inside"):
            step(problem, batch, Holding(adam), METHODS[name]())  # type: ignore[arg-type]
        assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
        assert not adam.state
        return
    bare, _ = train(name, lambda optimizer: optimizer)
    wrapped, _ = train(name, Holding)
    for p, q in zip(bare, wrapped, strict=True):
        assert torch.equal(p, q)
