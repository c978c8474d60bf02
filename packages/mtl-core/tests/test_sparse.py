"""Embeddings with sparse gradients: their touched rows are all that is held, combined and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, MicroBatches, Problem, collect, step
from mtl_core.collecting.flat import added

ROWS = 50


class ByNorm:
    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


def make(sparse: bool, *, mixed: bool = False, absent: bool = False) -> tuple[Problem, Tensor]:
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
        if absent and 20 in ids.tolist():
            return {"b": second}
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
        monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
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
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_touched_rows_are_all_that_is_written(
    name: str, small: bool, parts: int, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    method, options = METHODS[name]
    if parts > 1 and "keep" in options:
        return
    problem, ids = make(True)
    model: Any = problem.model
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    batch: Any = MicroBatches([ids[:2], ids[2:]]) if parts > 1 else ids
    step(problem, batch, torch.optim.SGD(model.parameters(), lr=0.1), method(), scaler=scaler, **options)
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
    monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    problem, ids = make(True)
    grads = collect(problem.losses(ids).outputs, problem.shared)
    monkeypatch.setattr("mtl_core.collecting.dense.empty_jacobian", lambda *_: pytest.fail("a dense Jacobian"))
    monkeypatch.setattr(Tensor, "to_dense", lambda *_: pytest.fail("a dense gradient"))
    gramian = grads.host_gramian
    grads.assign_combination(torch.ones(2, dtype=torch.float64))
    dense, _ = make(False)
    expected = collect(dense.losses(ids).outputs, dense.shared)
    torch.testing.assert_close(gramian, expected.host_gramian)
    torch.testing.assert_close(grads.combine(torch.ones(2)), expected.combine(torch.ones(2)))


@pytest.mark.parametrize("route", ["one batch", "no jacobian", "micro-batches", "scaled"])
@pytest.mark.parametrize("absent", [False, True])
def test_nothing_of_the_tables_size_is_made_in_a_step(
    route: str, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    ends = []
    for sparse in (True, False):
        problem, ids = make(sparse, absent=absent)
        # The parts touch different rows, and the second may lack a task.
        batch: Any = MicroBatches([ids[:2], ids[2:]]) if route == "micro-batches" else ids
        options: dict[str, Any] = {"keep": "gramian"} if route == "no jacobian" else {}
        if route == "scaled":
            options["scaler"] = torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        with monkeypatch.context() as patch:
            if sparse:
                patch.setattr("mtl_core.collecting.dense.empty_jacobian", lambda *_: pytest.fail("a dense Jacobian"))
                patch.setattr(Tensor, "to_dense", lambda *_: pytest.fail("a dense gradient"))
            step(problem, batch, optimizer, ByNorm(), **options)
        ends.append([p.detach() for p in problem.model.parameters()])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_rows_are_added_to_a_dense_gradient_and_the_other_way_round() -> None:
    dense = torch.arange(6.0).view(3, 2)
    rows = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2))
    expected = torch.tensor([[0.0, 1.0], [3.0, 4.0], [4.0, 5.0]])
    assert torch.equal(added(dense, rows), expected)
    assert torch.equal(added(rows, dense), expected)
    assert torch.equal(added(rows, rows).to_dense(), torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]))
