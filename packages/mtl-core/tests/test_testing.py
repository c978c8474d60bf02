"""The laws must be able to fail: each is shown a method that breaks it and one that keeps it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from mtl_core import testing
from mtl_core.testing import STRUCTURES, jacobian_of, jacobians, losses

J = jacobian_of("opposite", n_tasks=3, n_parameters=6, spread=2.0, seed=1)


def mean(jacobian: Tensor) -> Tensor:
    return jacobian.mean(dim=0)


def zero(jacobian: Tensor) -> Tensor:
    return torch.zeros_like(jacobian[0])


def test_finite() -> None:
    testing.assert_finite(mean, J)
    for bad in (lambda j: j.mean(0) / 0.0, lambda j: j.mean(1), lambda j: j.mean(0).float()):
        with pytest.raises(AssertionError):
            testing.assert_finite(bad, J)


def test_non_conflicting() -> None:
    testing.assert_non_conflicting(mean, torch.eye(3))
    with pytest.raises(AssertionError, match="cosines"):
        testing.assert_non_conflicting(mean, torch.tensor([[1.0, 0.0], [-1e-3, 0.0]]))


def test_permutation() -> None:
    gramian, order = J @ J.T, torch.tensor([2, 0, 1])
    testing.assert_equivariant_to_permutation(lambda g: 1.0 / g.diagonal(), gramian, order)
    with pytest.raises(AssertionError, match="moves"):
        testing.assert_equivariant_to_permutation(lambda g: torch.arange(3.0), gramian, order)


def test_homogeneous() -> None:
    testing.assert_homogeneous(mean, J, 1e-3, 1.0)
    with pytest.raises(AssertionError):
        testing.assert_homogeneous(mean, J, 1e-3, 0.0)


def test_rotation() -> None:
    rotation = testing.rotations(6, seed=0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(6, dtype=torch.float64))
    testing.assert_invariant_to_rotation(mean, J, rotation)
    with pytest.raises(AssertionError):
        testing.assert_invariant_to_rotation(lambda j: j.abs().mean(0), J, rotation)


def test_simplex_and_cone() -> None:
    testing.assert_in_simplex(torch.tensor([0.5, 0.5]))
    testing.assert_in_cone(torch.tensor([0.0, 5.0]))
    for bad in (torch.tensor([0.5, 0.6]), torch.tensor([-0.5, 1.5])):
        with pytest.raises(AssertionError):
            testing.assert_in_simplex(bad)
    with pytest.raises(AssertionError):
        testing.assert_in_cone(torch.tensor([-0.1, 1.0]))


def test_equal_rows() -> None:
    testing.assert_equal_rows_give_their_direction(mean, J[0], 3)
    with pytest.raises(AssertionError):
        testing.assert_equal_rows_give_their_direction(lambda j: -j.mean(0), J[0], 3)


def test_stationary() -> None:
    stationary = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    testing.assert_zero_at_stationary(zero, stationary)
    with pytest.raises(AssertionError):
        testing.assert_zero_at_stationary(mean, stationary)


def test_scaling() -> None:
    scales = torch.tensor([1.0, 10.0, 0.1])
    testing.assert_linear_under_scaling(mean, J, scales)
    with pytest.raises(AssertionError):
        testing.assert_linear_under_scaling(lambda j: j[0] * j.norm(), J, scales)


def test_float32() -> None:
    testing.assert_same_in_float32(mean, J)
    with pytest.raises(AssertionError):
        testing.assert_same_in_float32(lambda j: j.mean(0) * (2 if j.dtype == torch.float32 else 1), J)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_are_what_they_say(structure: testing.strategies.Structure) -> None:
    jacobian = jacobian_of(structure, n_tasks=4, n_parameters=9, spread=2.0, seed=3)
    norms = jacobian.norm(dim=1)
    cosine = float(torch.nn.functional.cosine_similarity(jacobian[0], jacobian[-1], dim=0))
    expected = {
        "generic": float(norms.max() / norms.min()) == pytest.approx(100.0),
        "balanced": float(norms.max() / norms.min()) == pytest.approx(1.0),
        "duplicated": torch.equal(jacobian[0], jacobian[-1]),
        "opposite": cosine == pytest.approx(-1.0),
        "near_parallel": 0 < 1 - cosine < 1e-11,
        "zero_row": float(norms[-1]) == 0.0,
        "rank_deficient": int(torch.linalg.matrix_rank(jacobian)) == 2,
        "one": torch.equal(jacobian, jacobian[:1].expand(4, -1)),
    }
    assert expected[structure]
    assert torch.equal(jacobian, jacobian_of(structure, n_tasks=4, n_parameters=9, spread=2.0, seed=3))


@given(jacobians(n_tasks=(1, 4), dtypes=(torch.bfloat16, torch.float64)), losses(low=1e-3, high=1e3))
def test_strategies_draw_finite_tensors(jacobian: Tensor, drawn: Tensor) -> None:
    assert jacobian.ndim == 2
    assert bool(torch.isfinite(jacobian).all())
    assert float(drawn.min()) >= 0.999e-3
    assert float(drawn.max()) <= 1.001e3
