"""Many non-negative quadratic programs at once, and the projections that rest on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtl_aggregators.solvers import project, project_rows
from mtl_aggregators.solvers.dual_cone import MANY
from mtl_aggregators.solvers.pivoting import nonnegative_quadratics
from mtl_core.testing import STRUCTURES, jacobian_of


def test_by_hand() -> None:
    matrix = np.array([[1.0, 0.5], [0.5, 1.0]])
    linear = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -0.25]])
    # Both, the first, none; and the first alone although the second pulls too, for its slack is −1/4 + 1/2.
    expected = [[2 / 3, 2 / 3], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert nonnegative_quadratics(matrix, linear).tolist() == pytest.approx(np.array(expected))


def test_what_is_found_is_optimal_and_the_rest_is_named() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rank = 8 if seed % 2 else 40
        rows = rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 45))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        matrix = rows @ rows.T
        found = nonnegative_quadratics(matrix, matrix)
        known = ~np.isnan(found).any(axis=1)
        assert np.isnan(found[~known]).all()
        if rank == 40:
            assert known.all()
        slack = found[known] @ matrix + matrix[known]
        assert found[known].min(initial=0.0) >= 0.0
        assert slack.min(initial=0.0) >= -1e-10 * (1.0 + found[known].sum(axis=1).max(initial=0.0))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_together_is_the_same_as_one_by_one(structure: Any) -> None:
    for spread, d in ((0.0, 60), (6.0, 45), (2.0, 10)):
        jacobian = jacobian_of(structure, n_tasks=MANY + 3, n_parameters=d, spread=spread, seed=d)
        gramian = (jacobian @ jacobian.T).numpy()
        gramian = 0.5 * (gramian + gramian.T)
        together = project_rows(gramian)
        assert together.residual <= 1e-8
        norms = np.sqrt(gramian.diagonal())
        for i in range(0, len(gramian), 5):
            one = project(gramian, np.eye(len(gramian))[i]).value
            apart = np.linalg.norm((together.value[i] - one) @ jacobian.numpy())
            assert apart <= 1e-8 * (np.abs(one) @ norms + 1e-300)
