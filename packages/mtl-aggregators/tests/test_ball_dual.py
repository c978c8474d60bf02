from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtl_aggregators.solvers import ball_dual, min_norm
from mtl_core import SolverError
from mtl_core.testing import jacobian_of, jacobians

RADII = (0.01, 0.4, 0.9, 1.0, 2.0, 10.0)


def gap(rows: np.ndarray, linear: float, norm: float) -> tuple[float, float]:
    """Primal–dual gap of the solution, and how far the step leaves its ball, both relative."""
    solution = ball_dual(rows @ rows.T, linear=linear, norm=norm)
    mean = rows.mean(axis=0)
    length = np.linalg.norm(mean)
    update = linear * mean + norm * (rows.T @ solution.step)
    point = rows.T @ solution.value
    dual = linear * point @ mean + norm * length * np.linalg.norm(point)
    active = np.linalg.norm(rows, axis=1) > 0
    size = (linear + norm) * length * np.linalg.norm(rows, axis=1).max() + 1e-300
    attained = (rows @ update)[active].min(initial=np.inf)
    excess = np.linalg.norm(rows.T @ solution.step) / (length + 1e-300) - 1.0
    return float((dual - attained) / size) if active.any() else 0.0, float(excess)


def test_orthonormal_tasks() -> None:
    solution = ball_dual(np.eye(2), linear=1.0, norm=0.5)
    assert solution.value == pytest.approx([0.5, 0.5])
    assert solution.step == pytest.approx([0.5, 0.5])


def test_one_task_takes_all() -> None:
    # g_0 = (2, 0, ½); only the second task is against it, and by far.
    rows = np.array([[6.0, 0.0, 0.0], [-2.0, 0.0, 1.0]])
    solution = ball_dual(rows @ rows.T, linear=1.0, norm=0.1)
    assert solution.value == pytest.approx([0.0, 1.0])
    mean = np.linalg.norm(rows.mean(axis=0))
    assert rows.T @ solution.step == pytest.approx(mean * rows[1] / np.linalg.norm(rows[1]))


@given(jacobians(n_tasks=(1, 2, 3, 11, 40)), st.sampled_from(RADII))
def test_no_duality_gap(jacobian: Tensor, norm: float) -> None:
    found, excess = gap(jacobian.numpy(), 1.0, norm)
    assert found <= 1e-7
    assert excess <= 1e-7


@pytest.mark.parametrize("n_tasks", [2, 3, 11, 40, 100])
@pytest.mark.parametrize("norm", RADII)
def test_residual(n_tasks: int, norm: float) -> None:
    for spread in (0.0, 6.0):
        rows = jacobian_of("generic", n_tasks=n_tasks, n_parameters=n_tasks + 5, spread=spread, seed=n_tasks).numpy()
        assert ball_dual(rows @ rows.T, linear=1.0, norm=norm).residual <= 1e-12
        found, excess = gap(rows, 1.0, norm)
        assert found <= 1e-11
        assert excess <= 1e-11


@pytest.mark.parametrize(("linear", "norm"), [(1.0, 0.4), (1.0, 2.0), (1.4, 0.08), (0.5, 0.8)])
def test_no_worse_than_cvxpy(linear: float, norm: float) -> None:
    rng = np.random.default_rng(0)
    for n_tasks in (2, 3, 5):
        for _ in range(5):
            rows = rng.normal(size=(n_tasks, 6)) * 10.0 ** rng.uniform(-1, 1, size=(n_tasks, 1))
            mean = rows.mean(axis=0)
            length = float(np.linalg.norm(mean))

            def value(weights: np.ndarray, rows: np.ndarray = rows, length: float = length) -> float:
                point = rows.T @ weights
                return float(linear * point @ rows.mean(axis=0) + norm * length * np.linalg.norm(point))

            weights = cp.Variable(n_tasks, nonneg=True)
            objective = linear * (rows @ mean) @ weights + norm * length * cp.norm(rows.T @ weights)
            cp.Problem(cp.Minimize(objective), [cp.sum(weights) == 1]).solve(solver=cp.CLARABEL)
            ours = value(ball_dual(rows @ rows.T, linear=linear, norm=norm).value)
            assert ours == pytest.approx(value(weights.value), rel=1e-6, abs=1e-7 * length**2)


def test_large_radius_is_the_min_norm_point() -> None:
    rows = jacobian_of("generic", n_tasks=4, n_parameters=8, seed=1).numpy()
    found = ball_dual(rows @ rows.T, linear=1.0, norm=1e9).value
    assert found == pytest.approx(min_norm(rows @ rows.T).value, abs=1e-6)


def test_without_the_norm_term_the_worst_off_task_counts() -> None:
    rows = np.array([[6.0, 0.0], [-2.0, 1.0], [1.0, 1.0]])
    solution = ball_dual(rows @ rows.T, linear=1.0, norm=0.0)
    assert solution.value.tolist() == [0.0, 1.0, 0.0]
    assert solution.step.tolist() == [0.0, 0.0, 0.0]


def test_kink_at_a_stationary_point() -> None:
    # Opposite tasks and one aside: no direction along the x axis serves both, so the step only removes that component.
    rows = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    solution = ball_dual(rows @ rows.T, linear=1.0, norm=2.0)
    mean = rows.mean(axis=0)
    assert mean + 2.0 * rows.T @ solution.step == pytest.approx([0.0, 1 / 3], abs=1e-12)
    assert rows.T @ solution.value == pytest.approx([0.0, 0.0], abs=1e-12)


def test_zero_mean_and_zero_rows() -> None:
    opposite = ball_dual(np.array([[1.0, -1.0], [-1.0, 1.0]]), linear=1.0, norm=0.4)
    assert opposite.step.tolist() == [0.0, 0.0]
    nothing = ball_dual(np.zeros((2, 2)), linear=1.0, norm=0.4)
    assert nothing.value.tolist() == [0.5, 0.5]
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [0.3, 1.0], [-0.5, 0.5]])
    kept = rows[[0, 2, 3]]
    with_zero = ball_dual(rows @ rows.T, linear=1.0, norm=0.4)
    without = ball_dual(kept @ kept.T, linear=1.0, norm=0.4)
    assert with_zero.value[[0, 2, 3]] == pytest.approx(without.value)
    assert with_zero.value[1] == 0.0
    assert with_zero.step[[0, 2, 3]] * 4 == pytest.approx(without.step * 3)


@pytest.mark.parametrize("closeness", [1e-4, 1e-6, 1e-7, 1e-8, 1e-10, 1e-13])
@pytest.mark.parametrize("norm", [0.4, 1.0, 3.0])
def test_nearly_stationary_points_neither_fail_nor_leave_the_ball(closeness: float, norm: float) -> None:
    rng = np.random.default_rng(0)
    for case in range(30):
        rows = rng.normal(size=(3 + case % 3, 1 + case % 5))
        rows[-1] = -rows[0] * rng.uniform(0.5, 2.0)
        rows += closeness * rng.normal(size=rows.shape)
        largest = np.linalg.norm(rows, axis=1).max()
        step = rows.T @ ball_dual(rows @ rows.T, linear=1.0, norm=norm).step
        assert np.linalg.norm(step) <= np.linalg.norm(rows.mean(axis=0)) + 1e-8 * largest


def test_failure_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["mtl_aggregators.solvers.ball_dual"]
    monkeypatch.setattr(module, "non_negative_least_squares", lambda *_: None)
    with pytest.raises(SolverError, match="CAGrad's dual"):
        ball_dual(np.eye(3), linear=1.0, norm=0.4)
