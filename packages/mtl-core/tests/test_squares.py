"""Norms at any size that float64 holds, and rows whose squares it does not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl_core import InvalidJacobianError, checks
from mtl_core.extension import gramian_of

SIZES = [0.0, 5e-324, 1e-310, 1e-300, 1e-170, 1e-145, 1.0, 1e149, 1e160, 1e300, 4e307]


@pytest.mark.parametrize("beside", SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_norms_of_rows_of_any_size(size: float, beside: float) -> None:
    rows = torch.tensor([[3.0 * size, 0.0, -4.0 * size], [0.0, beside, 0.0]], dtype=torch.float64)
    norms = checks.row_norms(rows)
    assert norms.dtype == torch.float64
    # 5 of the smallest number is no rounding of 5 times it.
    assert norms.tolist() == pytest.approx([5.0 * size, beside], rel=1e-15, abs=0.0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=5))
def test_norms_are_those_of_hypot(values: list[float]) -> None:
    expected = math.hypot(*values)
    found = checks.row_norms(torch.tensor([values], dtype=torch.float64)).item()
    assert found == expected or found == pytest.approx(expected, rel=1e-14, abs=1e-323)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_of_narrower_numbers(dtype: torch.dtype) -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-6, 4e-6]], dtype=dtype)
    expected = [math.hypot(*row) for row in rows.double().tolist()]
    assert checks.row_norms(rows).tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("sizes", "lost"),
    [
        ([1.0, 1.0, 1.0], []),
        ([1.0, 0.0, 1e-144], []),
        ([1.0, 1e-170, 0.0], [1]),
        ([5e-324, 1e-170, 1.0], [0, 1]),
        ([1e-162, 1e-155, 1e300], [0, 1]),
        ([0.0, 0.0, 0.0], []),
    ],
    ids=str,
)
def test_rows_that_are_lost(sizes: list[float], lost: list[int]) -> None:
    rows = torch.diag(torch.tensor(sizes, dtype=torch.float64))
    gramian = gramian_of(rows)
    if not lost:
        checks.refuse_lost(rows, gramian)
        return
    with pytest.raises(InvalidJacobianError) as raised:
        checks.refuse_lost(rows, gramian, name="rows", whose=("a", "b", "c"))
    assert str(raised.value).startswith("each row of `rows` must be zero or have a norm of at least 1e-150")
    assert [k for k, name in enumerate("abc") if f"in '{name}'" in str(raised.value)] == lost
    assert all(f"{sizes[k]:.6g} in" in str(raised.value) for k in lost)


def test_single_precision_has_no_squares_that_float64_has_not() -> None:
    rows = torch.diag(torch.tensor([1.0, 1e-45, 0.0]))
    gramian = gramian_of(rows)
    assert gramian[1, 1] > 0.0
    checks.refuse_lost(rows, gramian)
    checks.refuse_lost(rows[:, :0], torch.zeros(3, 3, dtype=torch.float64))
