from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtl_aggregators.solvers import factor, min_norm, min_norm_residual, unit_rows
from mtl_core import SolverError
from mtl_core.testing import jacobians


def gramian(*rows: list[float]) -> np.ndarray:
    matrix = np.array(rows, dtype=np.float64)
    return matrix @ matrix.T


@pytest.mark.parametrize(
    ("rows", "weights"),
    [
        ([[3.0, 4.0]], [1.0]),
        ([[2.0, 0.0], [0.0, 1.0]], [0.2, 0.8]),
        ([[1.0, 0.0], [2.0, 0.0]], [1.0, 0.0]),
        ([[1.0, 0.0], [-2.0, 0.0]], [2 / 3, 1 / 3]),
        ([[1.0, 0.0], [1.0, 0.0]], [0.5, 0.5]),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.5, 0.5, 0.0]),
        ([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], [1 / 6, 1 / 6, 4 / 6]),
        ([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [0.2, 0.0, 0.8]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]),
        ([[0.0, 0.0], [0.0, 5.0]], [0.0, 1.0]),
    ],
)
def test_worked_examples(rows: list[list[float]], weights: list[float]) -> None:
    assert min_norm(gramian(*rows)).value == pytest.approx(weights, abs=1e-14)


@given(jacobians(n_tasks=(1, 2, 3, 11, 40)))
def test_residual_is_at_rounding(jacobian: Tensor) -> None:
    matrix = (jacobian @ jacobian.T).numpy()
    solution = min_norm(matrix)
    assert solution.value.sum() == pytest.approx(1.0)
    assert solution.value.min() >= 0.0
    assert min_norm_residual(matrix, solution.value) <= 1e-13
    assert solution.residual == pytest.approx(min_norm_residual(matrix, solution.value), abs=1e-14)


@pytest.mark.parametrize("n_tasks", [2, 3, 11, 40, 100])
@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_residual_at_condition_1e12(n_tasks: int, spread: float) -> None:
    rng = np.random.default_rng(n_tasks)
    left, right = (np.linalg.qr(rng.normal(size=(n_tasks, n_tasks)))[0] for _ in range(2))
    rows = left @ np.diag(np.logspace(0, -6, n_tasks)) @ right
    rows *= np.logspace(-spread / 2, spread / 2, n_tasks)[:, None]
    matrix = rows @ rows.T
    assert min_norm_residual(matrix, min_norm(matrix).value) <= 1e-13


@given(jacobians(n_tasks=(2, 3, 5), max_spread=1.0, max_scale=0.0), st.integers(0, 10))
def test_no_worse_than_cvxpy(jacobian: Tensor, seed: int) -> None:
    rows = jacobian.numpy()
    active = np.linalg.norm(rows, axis=1) > 0
    if not active.any():
        return
    weights = cp.Variable(int(active.sum()), nonneg=True)
    oracle = cp.Problem(cp.Minimize(cp.norm(rows[active].T @ weights)), [cp.sum(weights) == 1])
    oracle.solve(solver=cp.CLARABEL)
    ours = np.linalg.norm(rows.T @ min_norm(rows @ rows.T).value)
    assert ours == pytest.approx(oracle.value, abs=1e-6)


def test_two_tasks_agree_with_the_general_solver() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.normal(size=(2, 3)) * 10.0 ** rng.uniform(-3, 3, size=(2, 1))
        closed = min_norm(rows @ rows.T).value
        # A third task far outside, which gets no weight, forces the general path.
        far = rows.T @ closed * 1e3
        general = min_norm(np.vstack([rows, far]) @ np.vstack([rows, far]).T).value
        assert general == pytest.approx([*closed, 0.0], abs=1e-9)


def test_scale_does_not_matter() -> None:
    matrix = gramian([1.0, 0.2, 0.0], [-0.3, 1.0, 0.1], [0.4, 0.4, 2.0])
    expected = min_norm(matrix).value
    for scale in (1e-150, 1e-16, 1e16, 1e150):
        assert min_norm(matrix * scale).value == pytest.approx(expected, rel=1e-12)


def test_a_search_that_does_not_end_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["mtl_aggregators.solvers.min_norm"]
    monkeypatch.setattr(module, "non_negative_least_squares", lambda *_: None)
    with pytest.raises(SolverError, match="min-norm point was not found"):
        min_norm(np.eye(3))
    monkeypatch.setattr(module, "non_negative_least_squares", lambda *_: np.array([1.0, 0.0, 0.0]))
    with pytest.raises(SolverError, match="not optimal") as caught:
        min_norm(np.eye(3))
    assert caught.value.residual == pytest.approx(1.0)
    assert caught.value.iterations == 1


@given(jacobians(n_tasks=(1, 3, 11)))
def test_the_factor_reproduces_the_cosines(jacobian: Tensor) -> None:
    cosines = unit_rows((jacobian @ jacobian.T).numpy()).cosines
    if len(cosines):
        root = factor(cosines)
        assert root.T @ root == pytest.approx(cosines, abs=1e-12)


def test_a_gramian_that_is_not_quite_semi_definite() -> None:
    # As rounded to float32: the smallest eigenvalue is −1e-7.
    cosines = np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5 + 3e-4], [0.5, 0.5 + 3e-4, 1.0]])
    assert np.linalg.eigvalsh(cosines)[0] < -1e-9
    assert factor(cosines).T @ factor(cosines) == pytest.approx(cosines, abs=1e-6)
