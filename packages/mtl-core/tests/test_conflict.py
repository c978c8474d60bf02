from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mtl_core as mtl
from mtl_core import InvalidInputError, InvalidJacobianError, InvalidParameterError, TaskGradients
from mtl_core.collecting.gramian import gramian_of
from mtl_core.testing import jacobians

J = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-1.0, -1.0]], dtype=torch.float64)
# mean (2/3, 1); inner products with it 2, 4, -5/3; its norm sqrt(13)/3
MEAN_COSINES = [2 / math.sqrt(13), 3 / math.sqrt(13), -5 / math.sqrt(26)]


def test_cosines_by_hand() -> None:
    half = -1 / math.sqrt(2)
    expected = [[1.0, 0.0, half], [0.0, 1.0, half], [half, half, 1.0]]
    torch.testing.assert_close(mtl.cosines(J), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(mtl.mean_cosines(J), torch.tensor(MEAN_COSINES, dtype=torch.float64))


def test_conflicts_by_hand() -> None:
    assert bool(mtl.weak_conflict(J))
    assert bool(mtl.dominated_conflict(J))  # the smallest, (-1, -1), points against the mean
    assert int(mtl.conflict_count(J)) == 1
    assert not bool(mtl.majority_conflict(J))  # 1 < ceil(3/2)
    assert bool(mtl.majority_conflict(J, 1 / 3))
    assert float(mtl.imbalance_ratio(J)) == pytest.approx(4 / math.sqrt(2))
    progress = mtl.individual_progress(J, torch.tensor([1.0, 0.0]))
    assert progress.tolist() == pytest.approx([1.0, 0.0, -1 / math.sqrt(2)])


def test_weak_but_not_dominated() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-0.5, 2.0]])
    assert bool(mtl.weak_conflict(jacobian))
    assert not bool(mtl.dominated_conflict(jacobian))


def test_conflict_of_a_large_task_is_not_dominated() -> None:
    # The mean is (0.4, 0), against the largest gradient alone; the smallest agrees with it.
    jacobian = torch.tensor([[-2.0, 0.0], [1.6, 0.0], [1.6, 0.0]])
    assert int(mtl.conflict_count(jacobian)) == 1
    assert not bool(mtl.dominated_conflict(jacobian))


def test_zero_gradients_have_no_direction() -> None:
    jacobian = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 0.1]])
    assert mtl.cosines(jacobian)[0].tolist() == [0.0, 0.0, 0.0]
    assert float(mtl.mean_cosines(jacobian)[0]) == 0.0
    assert bool(mtl.dominated_conflict(jacobian))  # the smallest of those that have a direction
    assert math.isinf(float(mtl.imbalance_ratio(jacobian)))
    assert not bool(mtl.dominated_conflict(torch.zeros(2, 3)))
    assert mtl.mean_cosines(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "metric",
    [
        mtl.cosines,
        mtl.mean_cosines,
        mtl.weak_conflict,
        mtl.dominated_conflict,
        mtl.conflict_count,
        mtl.majority_conflict,
        mtl.imbalance_ratio,
    ],
)
def test_three_forms_of_input_agree(metric: object) -> None:
    assert callable(metric)
    grads = TaskGradients(J, [nn.Parameter(torch.zeros(2))])
    from_jacobian = metric(J)
    assert torch.equal(metric(grads), from_jacobian)
    assert torch.equal(metric(gramian=gramian_of(J)), from_jacobian)
    with pytest.raises(InvalidInputError, match="exactly one"):
        metric(J, gramian=gramian_of(J))
    with pytest.raises(InvalidInputError, match="exactly one"):
        metric()


@given(jacobians(), st.integers(-6, 6))
def test_cosines_ignore_scale_and_stay_in_range(jacobian: Tensor, exponent: int) -> None:
    found = mtl.cosines(jacobian)
    assert float(found.abs().max()) <= 1.0
    torch.testing.assert_close(mtl.cosines(jacobian * 10.0**exponent), found, rtol=0, atol=1e-12)
    assert bool((mtl.mean_cosines(jacobian).abs() <= 1.0).all())
    assert 0 <= int(mtl.conflict_count(jacobian)) <= max(0, jacobian.shape[0] - 1)


@given(jacobians(max_scale=2.0), st.integers(0, 1000))
def test_progress_from_weights_is_progress_along_their_update(jacobian: Tensor, seed: int) -> None:
    weights = torch.rand(jacobian.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direct = mtl.individual_progress(jacobian, weights @ jacobian)
    by_gramian = mtl.individual_progress(None, weights, gramian=gramian_of(jacobian))
    update = float((weights @ jacobian).norm())
    if update > 1e-6 * float((weights * jacobian.norm(dim=1)).max()):
        torch.testing.assert_close(direct, by_gramian, rtol=1e-6, atol=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (torch.ones(3), r"two dimensions, one row per task, got shape \(3,\)"),
            (torch.ones(2, 2, 2), r"got shape \(2, 2, 2\)"),
            (torch.ones(0, 2), "at least one row"),
            (torch.ones(2, 2, dtype=torch.int64), "real floating dtype, got torch.int64"),
            (torch.ones(2, 2, dtype=torch.complex64), "real floating dtype, got torch.complex64"),
            (torch.tensor([[1.0, 2.0], [math.nan, 1.0]]), r"row\(s\) \[1\]"),
        ],
    )
    def test_jacobian(self, bad: Tensor, message: str) -> None:
        with pytest.raises(InvalidJacobianError, match=message):
            mtl.cosines(bad)

    def test_gramian(self) -> None:
        with pytest.raises(InvalidJacobianError, match=r"square, got shape \(2, 3\)"):
            mtl.cosines(gramian=torch.ones(2, 3))
        with pytest.raises(InvalidJacobianError, match=r"symmetric, .* got 2 at \[0, 1\] and 0 at \[1, 0\]"):
            mtl.cosines(gramian=torch.tensor([[4.0, 2.0], [0.0, 4.0]]))

    @pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, math.nan])
    def test_fraction(self, fraction: float) -> None:
        with pytest.raises(InvalidParameterError, match="`fraction` must"):
            mtl.majority_conflict(J, fraction)

    def test_update(self) -> None:
        with pytest.raises(InvalidJacobianError, match=r"one entry per parameter, shape \(2,\), got \(3,\)"):
            mtl.individual_progress(J, torch.ones(3))
        with pytest.raises(InvalidJacobianError, match=r"one weight per task, shape \(3,\), got \(2,\)"):
            mtl.individual_progress(None, torch.ones(2), gramian=gramian_of(J))
        with pytest.raises(InvalidInputError, match="exactly one"):
            mtl.individual_progress(None, torch.ones(2))
