"""The projection on the simplex: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

from mtl_aggregators.solvers import project_simplex


def test_projection_on_the_simplex() -> None:
    for seed in range(20):
        vector = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
        w = cp.Variable(5)
        cp.Problem(cp.Minimize(cp.sum_squares(w - vector.numpy())), [w >= 0, cp.sum(w) == 1]).solve(solver=cp.CLARABEL)
        assert project_simplex(vector).tolist() == pytest.approx(w.value.tolist(), abs=1e-5)
    assert project_simplex(torch.tensor([1e8, 1e8])).tolist() == [0.5, 0.5]
