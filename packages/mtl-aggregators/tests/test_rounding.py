"""Gramians of less than double precision give weights that are right to the accuracy which their dtype carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl_aggregators import MGDA, available, make, plumbline, stationarity_gap
from mtl_aggregators.solvers.rounding import as_known
from mtl_core import InvalidJacobianError

WEIGHTINGS = [name for name in available() if callable(getattr(make(name), "weights", None))]
DEVICE = ["cagrad", "dualproj", "fairgrad", "imgrad", "mgda", "nashmtl", "upgrad"]
NARROW = [torch.float32, torch.bfloat16, torch.float16]


def drawn(n_tasks: int, size: int, seed: int) -> Tensor:
    return torch.randn(n_tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_row(row: int, value: Any, seed: int) -> Tensor:
    rows = drawn(4, 8, seed)
    rows[row] = value(rows)
    return rows


FAMILIES: dict[str, Any] = {
    "generic": lambda seed: drawn(4, 9, seed),
    "more tasks than parameters": lambda seed: drawn(5, 3, seed),
    "two tasks": lambda seed: drawn(2, 5, seed),
    "forty tasks": lambda seed: drawn(40, 20, seed),
    "duplicated": lambda seed: with_row(3, lambda rows: rows[1], seed),
    "zero row": lambda seed: with_row(2, lambda rows: 0.0 * rows[2], seed),
    "opposite": lambda seed: with_row(3, lambda rows: -2.0 * rows[1], seed),
    "stationary": lambda seed: with_row(3, lambda rows: -rows[:3].sum(dim=0), seed),
}


def weights_of(name: str, gramian: Tensor, **settings: Any) -> Tensor:
    method = make(name, **settings)
    extra = {"losses": torch.arange(len(gramian)) + 1.0} if getattr(method, "takes_losses", False) else {}
    weights: Tensor = method.weights(gramian, **extra)
    return weights


def check(name: str, family: str, dtype: torch.dtype, *, seeds: int = 2, **settings: Any) -> None:
    for seed in range(seeds):
        for scale in (1e-3, 1.0, 1e3):
            if dtype == torch.float16 and scale != 1.0:
                continue  # squares of 1e6 overflow it, and those of 1e-6 have a digit left
            narrow = (FAMILIES[family](seed) * scale).to(dtype)
            rows, given = narrow.double(), narrow @ narrow.T
            found = weights_of(name, given, **settings)
            assert found.dtype == torch.float64
            assert bool(torch.isfinite(found).all())
            exact = weights_of(name, rows @ rows.T, **settings)
            norms = rows.norm(dim=1)
            size = float(found.abs() @ norms + exact.abs() @ norms)
            # A combination's length is known to the root of what its square is known to.
            allowed = (len(rows) * torch.finfo(dtype).eps) ** 0.5
            assert float((found @ rows - exact @ rows).norm()) <= allowed * size


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_of_a_narrow_gramian(name: str, family: str, dtype: torch.dtype) -> None:
    if family == "stationary" and name in ("alignedmtl", "config"):
        pytest.skip("whether the rounded rows themselves are dependent decides about these two: see the next test")
    check(name, family, dtype)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", ["alignedmtl", "config"])
def test_dependence_that_is_exact_in_the_dtype(name: str, dtype: torch.dtype) -> None:
    narrow = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, -2.0]], dtype=dtype)
    rows = narrow.double()
    found, exact = weights_of(name, narrow @ narrow.T), weights_of(name, rows @ rows.T)
    assert float((found @ rows - exact @ rows).norm()) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", NARROW[:2], ids=str)
@pytest.mark.parametrize("family", ["more tasks than parameters", "two tasks", "stationary"])
@pytest.mark.parametrize("name", DEVICE)
def test_the_same_on_the_device(name: str, family: str, dtype: torch.dtype) -> None:
    check(name, family, dtype, seeds=1, backend="device")


def test_the_call_of_the_readme() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        rows = torch.randn(5, 3, generator=generator)
        weights = MGDA().weights(rows @ rows.T)
        assert float(weights.sum()) == pytest.approx(1.0)


def test_double_precision_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def never(*_: Any) -> None:
        raise AssertionError("a float64 Gramian was taken for a rounded one")

    monkeypatch.setattr(sys.modules["mtl_aggregators.bases.gramian_method"], "as_known", never)
    MGDA().weights(drawn(3, 3, 0) @ drawn(3, 3, 0).T)
    MGDA()(drawn(3, 5, 0).float())  # its Gramian is accumulated in float64


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW], ids=str)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_halves_that_are_rounded_apart(name: str, dtype: torch.dtype) -> None:
    """Products on some processors are: here each entry below the diagonal is off by its last digit."""
    rows = drawn(4, 9, 0).to(dtype)
    given = rows @ rows.T
    given = given.triu() + given.triu(1).T
    apart = given.triu() + (given.tril(-1) * (1.0 + torch.finfo(dtype).eps))
    assert not torch.equal(apart, apart.T)
    found, exact = weights_of(name, apart), weights_of(name, given)
    assert float((found - exact).norm()) <= 100.0 * torch.finfo(dtype).eps ** 0.5 * float(exact.norm())


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW], ids=str)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_what_is_not_symmetric_is_no_gramian(name: str, dtype: torch.dtype) -> None:
    given = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.125], [0.25, -0.125, 1.0]], dtype=dtype)
    before = given.clone()
    with pytest.raises(InvalidJacobianError, match=r"symmetric.* got 0\.125 at \[1, 2\] and -0\.125 at \[2, 1\]"):
        weights_of(name, given)
    assert torch.equal(given, before)


def test_as_known_by_hand() -> None:
    rounded = np.array([[4.0, 2.0 + 1e-6, 0.0], [2.0 + 1e-6, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert as_known(rounded, torch.float32) == pytest.approx(
        np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0] * 3]), abs=1e-12
    )
    known = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert as_known(known, torch.float32) is known
    # Not rounding, whatever it is: left to the solvers' own judgement.
    nonsense = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert as_known(nonsense, torch.float32) is nonsense


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_metrics_of_a_narrow_gramian(dtype: torch.dtype) -> None:
    for seed in range(20):
        narrow = drawn(5, 3, seed).to(dtype)
        rows = narrow.double()
        allowed = (8 * torch.finfo(dtype).eps) ** 0.5
        given = narrow @ narrow.T
        assert float(stationarity_gap(gramian=given)) == pytest.approx(
            float(stationarity_gap(rows)), abs=allowed * float(rows.norm(dim=1).max())
        )
        assert 0.0 <= float(plumbline(gramian=given)) <= 1.0
