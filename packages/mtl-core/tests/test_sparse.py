"""Embeddings with sparse gradients: their touched rows are all that is held, combined and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, MicroBatches, Problem, collect, step

ROWS = 50


class ByNorm:
    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


def make(sparse: bool, *, mixed: bool = False) -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(ROWS, 3, sparse=sparse),
            "trunk": nn.Linear(3, 4),
            "a": nn.Linear(4, 1),
            "b": nn.Embedding(ROWS, 4, sparse=sparse),
        }
    ).double()

    def losses(model: Any, ids: Tensor) -> dict[str, Tensor]:
        z = model["trunk"](model["table"](ids)).tanh()
        second = (z * model["b"](ids)).sum(1).square().mean()
        if mixed:
            second = second + model["table"].weight.square().mean()
        return {"a": (model["a"](z) - 1).square().mean(), "b": second}

    shared = [model["table"], model["trunk"]]
    return Problem(model, losses, shared=shared, tasks=("a", "b")), torch.tensor([3, 7, 7, 20, 49])


METHODS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "gramian": (ByNorm, {}),
    "no jacobian": (ByNorm, {"keep": "gramian"}),
    "losses": (Total, {}),
    "jacobian": (lambda: lambda jacobian: jacobian.sum(0), {}),
    "clipped": (ByNorm, {"max_norm": 0.01, "clip": "all"}),
}


def optimizers(model: Any, kind: str) -> Any:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1)
    return torch.optim.Adagrad(model.parameters(), lr=0.1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_is_that_of_dense_gradients(
    name: str, small: bool, kind: str, mixed: bool, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("mtl_core.collecting.store._SMALL", 0)
    method, options = METHODS[name]
    if parts > 1 and "keep" in options:
        return
    ends = []
    for sparse in (True, False):
        problem, ids = make(sparse, mixed=mixed)
        optimizer = optimizers(problem.model, kind)
        batch: Any = MicroBatches([ids[:2], ids[2:4]]) if parts > 1 else ids
        for _ in range(2):
            step(problem, batch, optimizer, method(), **options)
        ends.append([p.detach() for p in problem.model.parameters()])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("small", [True, False])
def test_touched_rows_are_all_that_is_written(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr("mtl_core.collecting.store._SMALL", 0)
    method, options = METHODS[name]
    problem, ids = make(True)
    model: Any = problem.model
    step(problem, ids, torch.optim.SGD(model.parameters(), lr=0.1), method(), **options)
    for table in (model["table"], model["b"]):
        gradient = table.weight.grad
        assert gradient.is_sparse
        assert sorted(set(gradient.coalesce().indices()[0].tolist())) == [3, 7, 20, 49]


@pytest.mark.parametrize("name", ["gramian", "losses", "jacobian"])
def test_sparse_adam(name: str) -> None:
    method, options = METHODS[name]
    problem, ids = make(True)
    model: Any = problem.model
    tables = torch.optim.SparseAdam([model["table"].weight, model["b"].weight], lr=0.1)
    before = model["table"].weight.detach().clone()
    step(problem, ids, tables, method(), **options)
    moved = (model["table"].weight.detach() != before).any(1).nonzero().flatten().tolist()
    assert moved == [3, 7, 20, 49]


@pytest.mark.parametrize("name", ["gramian", "losses", "jacobian"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_an_optimiser_that_takes_no_sparse_gradients(name: str, kind: Any) -> None:
    method, options = METHODS[name]
    problem, ids = make(True)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with pytest.raises(InvalidInputError, match=rf"table\.weight.*got {kind.__name__}.*SparseAdam, Adagrad or SGD"):
        step(problem, ids, kind(problem.model.parameters(), lr=0.1), method(), **options)
    assert all(torch.equal(p, q) for p, q in zip(before, problem.model.parameters(), strict=True))


def test_sparse_adam_with_dense_gradients() -> None:
    problem, ids = make(False)
    with pytest.raises(InvalidInputError, match=r"table\.weight.*got SparseAdam"):
        step(problem, ids, torch.optim.SparseAdam(list(problem.model.parameters()), lr=0.1), ByNorm())


def test_nothing_of_the_tables_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_core.collecting.store._SMALL", 0)
    problem, ids = make(True)
    grads = collect(problem.losses(ids).outputs, problem.shared)
    monkeypatch.setattr("mtl_core.collecting.store.empty_jacobian", lambda *_: pytest.fail("a dense Jacobian"))
    gramian = grads.host_gramian
    grads.assign_combination(torch.ones(2, dtype=torch.float64))
    dense, _ = make(False)
    expected = collect(dense.losses(ids).outputs, dense.shared)
    torch.testing.assert_close(gramian, expected.host_gramian)
    torch.testing.assert_close(grads.combine(torch.ones(2)), expected.combine(torch.ones(2)))
