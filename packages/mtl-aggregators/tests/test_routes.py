"""The same numbers on every route that a method chooses by size: selecting or sorting, one block or several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtl_aggregators import IMTLG, AlignedMTL, ExcessMTL, TrimmedMean, excess_mtl, trimmed_mean
from mtl_core import InvalidJacobianError

FINE = {torch.float32: 1e-5, torch.float64: 1e-13}


def rows(n_tasks: int, size: int, dtype: torch.dtype, *, ties: bool = False) -> Tensor:
    drawn = torch.randn(n_tasks, size, generator=torch.Generator().manual_seed(n_tasks), dtype=torch.float64)
    return (drawn.mul(2.0).round() if ties else drawn).to(dtype)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, trimmed_mean.WIDE, trimmed_mean.BLOCK + 3])
@pytest.mark.parametrize(("n_tasks", "trim"), [(3, 1), (4, 1), (5, 2), (11, 1), (11, 5), (12, 5), (13, 6), (40, 2)])
def test_trimmed_mean_is_that_of_the_sorted_rows(
    n_tasks: int, trim: int, size: int, dtype: torch.dtype, ties: bool
) -> None:
    jacobian = rows(n_tasks, size, dtype, ties=ties)
    given = jacobian.clone()
    expected = jacobian.double().sort(dim=0).values[trim : n_tasks - trim].mean(dim=0)
    update = TrimmedMean(trim=trim)(jacobian)
    assert update.dtype == dtype
    assert torch.allclose(update.double(), expected, rtol=0.0, atol=FINE[dtype])
    assert torch.equal(jacobian, given)


def test_trimmed_mean_keeps_small_entries_beside_large_outliers() -> None:
    jacobian = torch.full((5, trimmed_mean.WIDE), 1e-3)
    jacobian[0], jacobian[4] = 1e20, -1e20
    assert torch.allclose(TrimmedMean()(jacobian), torch.full((trimmed_mean.WIDE,), 1e-3))


def test_trimmed_mean_of_a_jacobian_whose_rows_are_not_contiguous() -> None:
    jacobian = rows(600, 3, torch.float32).T
    assert torch.allclose(TrimmedMean()(jacobian), jacobian.median(dim=0).values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("block", [12, 30, 1 << 20])
def test_excess_mtl_does_not_depend_on_the_blocks(
    block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excess_mtl, "BLOCK", block)
    method = ExcessMTL()
    weights, total, first = torch.ones(3, dtype=torch.float64), 0.0, None
    for step in range(4):
        jacobian = rows(3, 25, torch.float64).mul(step + 1.0).roll(step, dims=1).to(dtype)
        wide = jacobian.double()
        total = total + wide.square()
        risks = (wide.square() / total.sqrt()).sum(dim=1)
        if first is None:
            first = risks
        else:
            weights = 3.0 * torch.softmax(weights.log() + risks / first, dim=0)
        expected = weights @ wide
        accuracy = 1e-2 if dtype == torch.bfloat16 else FINE[dtype]
        assert torch.allclose(method(jacobian).double(), expected, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("block", [12, 1 << 20])
def test_excess_mtl_leaves_the_state_that_was_handed_out(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excess_mtl, "BLOCK", block)
    method = ExcessMTL()
    method(rows(3, 25, torch.float64))
    state = method.get_extra_state()["state"]
    before = [part.clone() for part in state]
    method(rows(3, 25, torch.float64))
    assert all(torch.equal(now, then) for now, then in zip(state, before, strict=True))


def test_excess_mtl_has_no_risk_where_there_never_was_a_gradient() -> None:
    method = ExcessMTL()
    jacobian = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    for _ in range(2):
        assert bool(torch.isfinite(method(jacobian)).all())
    tiny = 1e-100 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(ExcessMTL()(tiny), 1e-100 * torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [IMTLG(), AlignedMTL(), TrimmedMean(), ExcessMTL()])
def test_the_row_that_is_not_finite_is_named(method: torch.nn.Module, bad: float) -> None:
    jacobian = torch.ones(3, 5)
    jacobian[1, 2] = bad
    with pytest.raises(InvalidJacobianError, match=r"`jacobian`.*1"):
        method(jacobian)


@pytest.mark.parametrize("n_tasks", [2, 3, 20])
def test_a_gramian_whose_squares_overflow_is_accepted(n_tasks: int) -> None:
    gramian = torch.eye(n_tasks, dtype=torch.float64) * 1e200
    for method in (IMTLG(), AlignedMTL()):
        assert bool(torch.isfinite(method.weights(gramian)).all())


@pytest.mark.parametrize("n_tasks", [2, 3, 11, 40])
@pytest.mark.parametrize("scale_mode", ["min", "median", "rmse"])
def test_aligned_mtl_against_the_formula(n_tasks: int, scale_mode: str) -> None:
    jacobian = rows(n_tasks, n_tasks + 30, torch.float64)
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
    size = {"min": values[0], "median": values[(n_tasks - 1) // 2], "rmse": values.mean()}[scale_mode]
    expected = size.sqrt() * vectors @ (values.rsqrt() * vectors.sum(dim=0))
    found = AlignedMTL(scale_mode=scale_mode).weights(jacobian @ jacobian.T)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, rtol=1e-9)


def test_imtl_g_against_the_inverse() -> None:
    for n_tasks in (2, 3, 11, 40):
        jacobian = rows(n_tasks, n_tasks + 30, torch.float64)
        norms = jacobian.norm(dim=1)
        shares = torch.linalg.solve(jacobian @ jacobian.T, norms)
        method = IMTLG()
        assert torch.allclose(method.weights(jacobian @ jacobian.T), shares / shares.sum(), rtol=1e-9)
        assert method.last_solution is not None
        assert method.last_solution.residual < 1e-12
