"""Rows of embeddings that stand for padding get no gradient, and no displacement either."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem
from mtl_teleport import COST, OFT, Always, Dense, LoHa, LoKr, LoRA, RandomTeleport
from mtl_teleport.adapters.padding import padding_rows
from mtl_teleport.sharpness.point import Point
from mtl_teleport.sharpness.random_probes import RandomSharpness

WORDS = torch.tensor([[2, 1, 0], [3, 2, 2], [5, 4, 2], [7, 6, 0], [1, 3, 5], [2, 7, 4]])


class Text(nn.Module):
    """Words of which number 2 is padding, with a value of its own as a loaded embedding may have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make: Any = nn.EmbeddingBag if kind == "bag" else nn.Embedding
        self.words = make(8, 4, padding_idx=2, sparse=kind == "sparse")
        self.layer = nn.Linear(4, 4)
        if kind == "tied":
            self.out = nn.Linear(4, 8, bias=False)
            self.out.weight = self.words.weight
        with torch.no_grad():
            self.words.weight.copy_(torch.linspace(-1.0, 1.0, 32).view(8, 4).sin())

    def forward(self, x: Tensor) -> Tensor:
        found = self.words(x)
        found = self.layer(torch.tanh(found if found.ndim == 2 else found.sum(1)))
        return self.out(found) if hasattr(self, "out") else found


def _problem(kind: str, shared: str = "") -> Problem:
    def losses(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = m(x)
        return {"a": (y - 1).square().mean() + 1, "b": 3 * (y + 1).square().mean() + 1}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Text(kind)
    return Problem(model, losses, shared=model.get_submodule(shared), tasks=("a", "b"))


def _moved(kind: str, method: Any) -> Tensor:
    """The move of the words' weight by a teleport alone."""
    problem = _problem(kind)
    weight = problem.model.get_parameter("words.weight")
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-2)
    (event,) = mtl_core.step(problem, WORDS, optimizer, method).events
    assert event.accepted
    return weight.detach() - before


SETTINGS: dict[str, Any] = {"trigger": Always(), "steps_per_epoch": 10, "own_step": "skip"}
ADAPTERS = {a.__name__: a() for a in (LoRA, LoHa, LoKr, OFT, Dense)}


@pytest.mark.parametrize("sharpness", ["exact", "ascent"])
@pytest.mark.parametrize("kind", ["embedding", "sparse", "bag"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_leave_padding_where_it_is(adapter: str, kind: str, sharpness: Any) -> None:
    if kind == "bag" and sharpness == "exact":
        sharpness = "random"  # torch cannot differentiate bags twice
    moved = _moved(kind, COST(adapter=ADAPTERS[adapter], max_steps=3, sharpness=sharpness, max_drift=None, **SETTINGS))
    assert not moved[2].any()
    assert moved.any()


@pytest.mark.parametrize("kind", ["embedding", "sparse", "bag"])
def test_random_moves_leave_padding_where_it_is(kind: str) -> None:
    moved = _moved(kind, RandomTeleport(length=0.1, **SETTINGS))
    assert not moved[2].any()
    assert moved[torch.arange(8) != 2].abs().amin() > 0.0


@pytest.mark.parametrize("settings", [{}, {"norm": "tensor"}, {"noise": "all"}, {"maximum": "task"}], ids=str)
@pytest.mark.parametrize("kind", ["embedding", "sparse", "bag", "tied"])
def test_random_probes_look_around_in_what_training_moves(kind: str, settings: dict[str, Any]) -> None:
    problem = _problem(kind)
    before = problem.model.get_parameter("words.weight").detach().clone()
    sharpness = RandomSharpness(probes=3, radius=0.1, **settings)
    with Dense().attach(problem, batch=WORDS) as session:
        generator = torch.Generator().manual_seed(0)
        point = Point.of(session, WORDS, torch.ones(2), generator=generator)
        seen: list[Tensor] = []
        evaluate = session.evaluate_without_graph

        def spied(batch: Any, *, parameters: Any) -> Any:
            seen.append(parameters["words.weight"] - before)
            assert sum(float((p - point.values[k]).square().sum()) for k, p in parameters.items()) > 0.0
            return evaluate(batch, parameters=parameters)

        session.evaluate_without_graph = spied  # type: ignore[method-assign]
        sharpness.estimate(point)
    assert len(seen) == 3
    for moved in seen:
        assert moved[torch.arange(8) != 2].abs().amin() > 0.0
        assert bool(moved[2].any()) == (kind == "tied")
        if settings.get("norm") == "tensor":
            assert moved.norm().item() == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("kind", ["embedding", "sparse", "bag"])
def test_noise_on_all_parameters_leaves_the_padding_of_heads_where_it_is(kind: str) -> None:
    problem = _problem(kind, shared="layer")
    with Dense().attach(problem, batch=WORDS) as session:
        point = Point.of(session, WORDS, torch.ones(2), generator=torch.Generator().manual_seed(0))
        moved = RandomSharpness(probes=1, radius=0.1, noise="all")._perturbed(point)["words.weight"]
    change = moved - problem.model.get_parameter("words.weight").detach()
    assert change[torch.arange(8) != 2].abs().amin() > 0.0
    assert not change[2].any()


def test_padding_that_an_output_layer_trains_is_a_row_as_any_other() -> None:
    problem = _problem("tied")
    assert padding_rows(problem) == {}
    problem.losses(WORDS).values.sum().backward()
    weight = problem.model.get_parameter("words.weight")
    assert weight.grad is not None
    assert weight.grad[2].any()
    assert _moved("tied", RandomTeleport(length=0.1, **SETTINGS))[2].any()
