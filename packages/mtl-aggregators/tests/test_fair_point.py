from __future__ import annotations

import sys

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtl_aggregators.solvers import fair_point, fair_residual
from mtl_core import SolverError
from mtl_core.testing import jacobian_of, jacobians

ALPHAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
# Structures of which a solution exists; with more tasks than parameters zero may lie in the hull of any.
SOLVABLE = ("generic", "balanced", "duplicated", "near_parallel", "zero_row", "one")


def test_single_task() -> None:
    # n² w = w^(-1/2) for n = 8: w = 8^(-4/3).
    assert fair_point(np.array([[64.0]]), 2.0).value.tolist() == pytest.approx([1 / 16])


def test_orthogonal_tasks_are_independent() -> None:
    for alpha in ALPHAS:
        found = fair_point(np.diag([4.0, 0.0, 1e-6]), alpha).value
        power = alpha / (1.0 + alpha)
        assert found == pytest.approx([4.0**-power, 0.0, 1e-6**-power])


def test_equal_tasks() -> None:
    # m w = w^(-1/α) for m equal unit gradients.
    for alpha in ALPHAS:
        assert fair_point(np.ones((4, 4)), alpha).value == pytest.approx([4.0 ** (-alpha / (1 + alpha))] * 4)


def test_two_tasks_of_nash() -> None:
    cosine = -0.5
    gramian = np.array([[4.0, 2.0 * 3.0 * cosine], [2.0 * 3.0 * cosine, 9.0]])
    assert fair_point(gramian, 1.0).value == pytest.approx(np.array([1 / 2, 1 / 3]) / np.sqrt(1 + cosine))


@given(jacobians(structures=SOLVABLE, n_tasks=(1, 2, 3, 5)), st.sampled_from(ALPHAS[1:6]))
def test_residual_where_a_solution_exists(jacobian: Tensor, alpha: float) -> None:
    gramian = (jacobian @ jacobian.T).numpy()
    solution = fair_point(gramian, alpha)
    if solution.regularised:
        return
    active = gramian.diagonal() > 0.0
    assert (solution.value[active] > 0.0).all()
    assert (solution.value[~active] == 0.0).all()
    # |(Gw)_i − w_i^(−1/α)| within 1e-8, or within the rounding of the sum (Gw)_i itself.
    target = solution.value[active] ** (-1.0 / alpha)
    gap = np.abs((gramian @ solution.value)[active] - target)
    rounding = (np.abs(gramian) @ solution.value)[active]
    assert (gap <= 1e-8 * target + 1e-13 * rounding).all()


@pytest.mark.parametrize("n_tasks", [2, 3, 11, 40, 100])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_residual_is_at_rounding_for_well_posed_tasks(n_tasks: int, alpha: float) -> None:
    for spread in (0.0, 6.0):
        for scale in (-8.0, 8.0):
            jacobian = jacobian_of(
                "generic", n_tasks=n_tasks, n_parameters=n_tasks + 5, spread=spread, scale=scale, seed=n_tasks
            )
            gramian = (jacobian @ jacobian.T).numpy()
            solution = fair_point(gramian, alpha)
            assert not solution.regularised
            assert fair_residual(gramian, solution.value, alpha) <= 1e-8


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_alpha_is_reached(alpha: float) -> None:
    for seed in range(10):
        # Below α = ½ norms apart put targets so far apart that rounding alone exceeds the tolerance.
        spread = 2.0 if alpha >= 0.5 else 0.0
        jacobian = jacobian_of("generic", n_tasks=8, n_parameters=12, spread=spread, seed=seed)
        gramian = (jacobian @ jacobian.T).numpy()
        solution = fair_point(gramian, alpha)
        assert not solution.regularised
        assert solution.residual <= 1e-8


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_cvxpy_minimises_the_same_potential(alpha: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows = rng.normal(size=(4, 6))
        gramian = rows @ rows.T
        weights = cp.Variable(4, pos=True)
        power = 1.0 / alpha
        utility = cp.sum(cp.log(weights)) if power == 1.0 else cp.sum(cp.power(weights, 1.0 - power)) / (1.0 - power)
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(rows.T @ weights) - utility)).solve(solver=cp.CLARABEL)
        assert fair_point(gramian, alpha).value == pytest.approx(weights.value, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0], [-3.0, 0.0]],
        [[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]],
        [[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]],
    ],
)
def test_stationary_points_are_regularised_and_say_so(rows: list[list[float]], alpha: float) -> None:
    matrix = np.array(rows)
    solution = fair_point(matrix @ matrix.T, alpha)
    assert solution.regularised
    assert np.isfinite(solution.value).all()
    assert solution.residual <= 1e-8


def test_the_ridge_is_relative_to_each_gradient() -> None:
    # Unit rows: (1 + ridge + cos φ) y = 1/y with cos φ = −1.
    solution = fair_point(np.array([[4.0, -2.0], [-2.0, 1.0]]), 1.0, ridge=0.01)
    assert solution.value == pytest.approx([5.0, 10.0])


@pytest.mark.parametrize("closeness", [1e-2, 1e-4, 1e-6, 1e-7, 1e-8, 1e-10, 1e-13])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_nearly_stationary_points_never_fail(closeness: float, alpha: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.normal(size=(3, 4))
        rows[2] = -(rows[0] + rows[1]) + closeness * rng.normal(size=4)
        assert np.isfinite(fair_point(rows @ rows.T, alpha).value).all()


def test_all_zero() -> None:
    assert fair_point(np.zeros((3, 3)), 1.0).value.tolist() == [0.0, 0.0, 0.0]


def test_failure_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mtl_aggregators.solvers.fair_point"], "MAX_STEPS", 2)
    with pytest.raises(SolverError, match="not found") as caught:
        fair_point(np.array([[1.0, 0.5, -0.7], [0.5, 1.0, 0.0], [-0.7, 0.0, 1.0]]), 2.0)
    assert caught.value.iterations > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decades", [20, 24, 32])
@pytest.mark.parametrize("alpha", [5.0, 10.0, 20.0])
def test_a_task_beside_which_the_other_is_nothing(alpha: float, decades: int) -> None:
    # C y = a y^(-p) with a = (1, n^(p-1)): the second progress is below rounding, y_2 = y_1/2, and the first leaves
    # y_1 (1 - 1/4) = y_1^(-p). The weights of the units are divided by the norms.
    norm, power = 10.0**decades, 1.0 / alpha
    first = 0.75 ** (-1.0 / (1.0 + power))
    found = fair_point(np.array([[1.0, -0.5 * norm], [-0.5 * norm, norm**2]]), alpha)
    assert not found.regularised
    assert found.value.tolist() == pytest.approx([first, 0.5 * first / norm], rel=1e-9)
