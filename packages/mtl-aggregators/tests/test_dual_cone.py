from __future__ import annotations

import sys

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given
from torch import Tensor

from mtl_aggregators.solvers import project, project_rows
from mtl_core import SolverError
from mtl_core.testing import jacobians


def test_worked_example() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 1.0]])
    solution = project_rows(rows @ rows.T)
    assert solution.value == pytest.approx(np.array([[1.0, 0.5], [1.0, 1.0]]))
    assert solution.value @ rows == pytest.approx(np.array([[0.5, 0.5], [0.0, 1.0]]))


def test_agreeing_gradients_are_left_alone() -> None:
    assert project_rows(np.array([[1.0, 0.5], [0.5, 4.0]])).value.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_zero_rows_keep_themselves_and_change_nobody() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0], [0.5, 0.5]])
    full = project_rows(rows @ rows.T).value
    reduced = project_rows(rows[[0, 2, 3]] @ rows[[0, 2, 3]].T).value
    assert full[np.ix_([0, 2, 3], [0, 2, 3])] == pytest.approx(reduced)
    assert full[1].tolist() == full[:, 1].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert project_rows(np.zeros((2, 2))).value.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@given(jacobians(n_tasks=(1, 2, 3, 11, 40)))
def test_optimality_on_unit_rows(jacobian: Tensor) -> None:
    rows = jacobian.numpy()
    norms = np.linalg.norm(rows, axis=1)
    active = norms > 0
    solution = project_rows(rows @ rows.T)
    unit = rows[active] / norms[active, None]
    coefficients = solution.value[np.ix_(active, active)] * norms[active] / norms[active, None]
    projections = coefficients @ unit
    added = coefficients - np.eye(int(active.sum()))
    size = 1.0 + added.sum(axis=1, keepdims=True)
    assert added.min(initial=0.0) >= 0.0
    # Feasible and complementary, up to the rounding of the coefficients.
    assert ((projections @ unit.T) / size).min(initial=0.0) >= -1e-10
    assert np.abs((added / size * (projections @ unit.T)).sum(axis=1)).max(initial=0.0) <= 1e-10
    assert solution.residual <= 1e-8


@given(jacobians(n_tasks=(2, 3, 5), max_spread=1.0, max_scale=0.0))
def test_cvxpy_projects_to_the_same_point(jacobian: Tensor) -> None:
    rows = jacobian.numpy()
    mean = rows.mean(axis=0)
    point = cp.Variable(rows.shape[1])
    cp.Problem(cp.Minimize(cp.sum_squares(point - mean)), [rows @ point >= 0]).solve(solver=cp.CLARABEL)
    m = len(rows)
    ours = rows.T @ project(rows @ rows.T, np.full(m, 1.0 / m)).value
    assert ours == pytest.approx(point.value, abs=2e-4)


def test_rows_agree_with_single_projections() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 7)) * np.logspace(-3, 3, 5)[:, None]
    matrix = rows @ rows.T
    together = project_rows(matrix).value
    for i in range(5):
        assert together[i] @ rows == pytest.approx(project(matrix, np.eye(5)[i]).value @ rows, rel=1e-9, abs=1e-15)


def test_a_ridge_is_relative_to_each_gradient() -> None:
    matrix = np.array([[4.0, -1.0], [-1.0, 1.0]])
    assert project_rows(matrix, ridge=0.1).value[0, 1] == pytest.approx(2.0 * 0.5 / 1.1)
    assert project_rows(matrix, ridge=0.1).value[1, 0] == pytest.approx(0.5 * 0.5 / 1.1)


def test_failure_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["mtl_aggregators.solvers.dual_cone"]
    monkeypatch.setattr(module, "non_negative_least_squares", lambda *_: None)
    rows = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]])
    with pytest.raises(SolverError, match="was not found"):
        project_rows(rows @ rows.T)
    monkeypatch.setattr(module, "non_negative_least_squares", lambda *_: np.zeros(3))
    with pytest.raises(SolverError, match="not optimal"):
        project(rows @ rows.T, np.array([1.0, 0.0, 0.0]))
