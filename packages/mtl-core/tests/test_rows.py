"""Gradients kept one by one against the same in one matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import TaskGradients, collect, step
from mtl_core.collecting.dense import DenseStore
from mtl_core.collecting.rows import GradientRows
from mtl_core.testing import reference_jacobian, small_problem


@given(st.data())
def test_gramian_and_sums_are_those_of_the_matrix(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 23), min_size=1, max_size=5))
    n_tasks = data.draw(st.integers(1, 4))
    columns = data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    parameters = [nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in sizes]
    rows: list[Any] = [
        tuple(
            None if data.draw(st.booleans()) else torch.randn(size, dtype=torch.float64, generator=generator)
            for size in sizes
        )
        for _ in range(n_tasks)
    ]
    if data.draw(st.booleans()):
        rows[-1] = None  # a task that is absent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtl_core.collecting.rows._COLUMNS", columns)
        found = GradientRows(rows, parameters)
        store = DenseStore(n_tasks, range(n_tasks - (rows[-1] is None)), parameters)
        for k, row in enumerate(rows):
            if row is not None:
                store.row(k, row)
        matrix = store.matrix
        torch.testing.assert_close(found.gramian(), matrix @ matrix.T, rtol=1e-12, atol=1e-13)
    for k, row in enumerate(rows):
        parts = [torch.zeros(n, dtype=torch.float64) for n in sizes] if row is None else row
        expected = [torch.zeros(n, dtype=torch.float64) if g is None else g for n, g in zip(sizes, parts, strict=True)]
        assert torch.equal(matrix[k], torch.cat(expected))
    weights = torch.randn(n_tasks, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(found.combine(weights), weights @ matrix, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["mapping", "stack", "joint"])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_collected_one_by_one(
    form: Any, features: bool, chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    problem, batch = small_problem(3, features=features, form=form)
    jacobian = reference_jacobian(problem, batch)
    losses = problem.losses(batch)
    found = collect(losses.outputs, problem.shared, features=losses.features, chunk_size=chunk_size)
    assert not has_matrix(found)
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(found.gramian, jacobian @ jacobian.T, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.combine(weights), weights @ jacobian, rtol=1e-11, atol=1e-13)
    assert not has_matrix(found)  # neither needs the matrix
    torch.testing.assert_close(found.mean, jacobian.mean(0), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.matrix, jacobian, rtol=1e-11, atol=1e-13)


def has_matrix(gradients: TaskGradients) -> bool:
    store = gradients._store
    assert isinstance(store, DenseStore)
    return store._matrix is not None


class ByNorm:
    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_is_the_same(scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for small in (0, 1 << 15):
        monkeypatch.setattr("mtl_core.collecting.dense._SMALL", small)
        problem, batch = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if scaled else None
        step(problem, batch, optimizer, ByNorm(), scaler=scaler)
        ends.append([p.detach() for p in problem.model.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-13)


def test_gradients_of_mixed_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    table, dense = nn.Embedding(3, 2, sparse=True), nn.Parameter(torch.ones(2))
    losses = [dense.sum() * 3, table(torch.tensor([1])).sum() + dense.sum()]
    found = collect(losses, [table.weight, dense])
    assert found.gramian.tolist() == [[18.0, 6.0], [6.0, 4.0]]
    assert not has_matrix(found)
    assert found.matrix.tolist() == [[0, 0, 0, 0, 0, 0, 3, 3], [0, 0, 1, 1, 0, 0, 1, 1]]


def test_near_cancellation_is_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    theta = nn.Parameter(torch.zeros(8))
    direction = torch.linspace(1.0, 2.0, 8)
    aside = torch.zeros(8)
    aside[0] = 1.0
    found = collect([theta @ (direction + 1e-6 * aside), theta @ -direction], [theta])
    exact = found.matrix.double().sum(0)
    again = collect([theta @ (direction + 1e-6 * aside), theta @ -direction], [theta])
    assert again.host_gramian.shape == (2, 2)
    combined = again.combine(torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(combined.double(), exact, rtol=1e-6, atol=0.0)
