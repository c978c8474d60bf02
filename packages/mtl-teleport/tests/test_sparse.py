"""Shared embeddings with sparse gradients: every search moves them as it moves those with whole ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem, step
from mtl_core.extension import collect_problem
from mtl_teleport import COST, Always, RandomTeleport, TeleportReport
from mtl_teleport.sparse import dense_embeddings


class Words(nn.Module):
    def __init__(self, kind: str, *, sparse: bool) -> None:
        super().__init__()
        self._functional, self._sparse = kind == "functional", sparse
        if kind == "bag":
            self.words: nn.Module = nn.EmbeddingBag(20, 6, sparse=sparse, mode="sum")
        else:
            self.words = nn.Embedding(20, 6, sparse=sparse)
        self.layer, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.words(x)
        if self._functional:
            assert isinstance(self.words, nn.Embedding)
            z = nn.functional.embedding(x, self.words.weight, sparse=self._sparse)
        z = torch.tanh(self.layer(z.mean(1) if z.ndim == 3 else z))
        return torch.stack([5 * (self.a(z) - 1).square().mean(), (self.b(z) + 1).square().mean()])


def _problem(kind: str, *, sparse: bool) -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    model = Words(kind, sparse=sparse).double()
    return Problem(model, lambda m, x: m(x), shared=["words", "layer"], tasks=("a", "b")), torch.randint(0, 20, (16, 3))


def _displacement(kind: str, *, sparse: bool, **settings: Any) -> list[Tensor]:
    problem, x = _problem(kind, sparse=sparse)
    start = [p.detach().clone() for p in problem.shared]
    gradients = collect_problem(problem, problem.losses(x))
    report = COST(max_steps=3, aim=None, max_drift=None, **settings).teleport(problem, [x], gradients, lr=1e-2)
    assert report.accepted
    return [p.detach() - q for p, q in zip(problem.shared, start, strict=True)]


@pytest.mark.parametrize("conflict_weight", [0.0, 0.1])
@pytest.mark.parametrize("search", ["projected", "penalty"])
@pytest.mark.parametrize("sharpness", ["exact", "ascent", "random"])
@pytest.mark.parametrize("kind", ["layer", "functional"])
def test_the_same_move(kind: str, sharpness: str, search: str, conflict_weight: float) -> None:
    settings = {"sharpness": sharpness, "search": search, "conflict_weight": conflict_weight}
    found, expected = (_displacement(kind, sparse=sparse, **settings) for sparse in (True, False))
    assert all(bool(delta.any()) for delta in expected[:2])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"sharpness": "ascent", "conflict_weight": 0.1}])
def test_a_bag_cannot_be_differentiated_twice_and_the_advice_works(settings: dict[str, Any]) -> None:
    problem, x = _problem("bag", sparse=True)
    gradients = collect_problem(problem, problem.losses(x))
    with pytest.raises(InvalidInputError, match="must be twice differentiable") as error:
        COST(**settings).teleport(problem, [x], gradients, lr=1e-2)
    advice = re.search(r"Use sharpness='(\w+)' and conflict_weight=(\d+)", str(error.value))
    assert advice is not None
    followed = {"sharpness": advice[1], "conflict_weight": float(advice[2])}
    for search in ("projected", "penalty"):
        one, other = (_displacement("bag", sparse=sparse, search=search, **followed) for sparse in (True, False))
        assert bool(one[0].any())
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_step_leaves_the_layers_as_they_are() -> None:
    problem, x = _problem("layer", sparse=True)
    cost = COST(trigger=lambda gramian: True, max_per_epoch=None, max_steps=3)
    (report,) = step(problem, x, torch.optim.SGD(problem.model.parameters(), lr=0.1), cost).events
    assert isinstance(report, TeleportReport)
    assert report.accepted
    words = problem.model.get_submodule("words")
    assert isinstance(words, nn.Embedding)
    assert words.sparse


def test_they_are_sparse_again_after_an_error() -> None:
    model = Words("bag", sparse=True)

    def fails() -> None:
        with dense_embeddings(model):
            assert not model.words.sparse
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert model.words.sparse


@pytest.mark.parametrize("move", ["exact", "ascent", "random", "newton", "look-ahead", "flat", "a random move"])
@pytest.mark.parametrize("htr", ["released", "transported"])
def test_momentum_of_sparse_gradients_is_no_copy_of_the_weights(move: Any, htr: Any) -> None:
    """At the second step SGD's buffer is a sparse tensor of the weights' shape."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(6, 3, sparse=True), torch.nn.Linear(3, 2))
    problem = Problem(model, lambda m, x: m(x).square().mean(0), shared=model, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings: dict[str, Any] = {"trigger": Always(), "max_per_epoch": None, "htr": htr}
    method = (
        RandomTeleport(length=0.1, **settings)
        if move == "a random move"
        else COST(sharpness=move, aim=None, max_steps=2, **settings)
    )
    for _ in range(3):
        (report,) = step(problem, torch.tensor([0, 2, 2, 5]), optimizer, method).events
    assert optimizer.state[next(model.parameters())]["momentum_buffer"].is_sparse
    assert isinstance(report, TeleportReport)
