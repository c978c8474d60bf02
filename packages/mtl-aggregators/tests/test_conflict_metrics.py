from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from mtl_aggregators import plumbline, stationarity_gap
from mtl_core import InvalidInputError, InvalidJacobianError
from mtl_core.extension import gramian_of
from mtl_core.testing import jacobians


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_examples() -> None:
    # g_0 = (1.5, 0.5), g_m = (0.3, 0.9): 0.9 / √(2.5 · 0.9).
    assert float(plumbline(rows([3.0, 0.0], [0.0, 1.0]))) == pytest.approx(0.6)
    assert float(plumbline(rows([1.0, 0.0], [0.0, 1.0]))) == pytest.approx(1.0)
    # 3-4-5: the altitude of the right triangle.
    assert float(stationarity_gap(rows([3.0, 0.0], [0.0, 4.0]))) == pytest.approx(2.4)
    assert float(stationarity_gap(rows([3.0, 4.0]))) == pytest.approx(5.0)


def test_degenerate_points() -> None:
    opposite = rows([1.0, 0.0], [-2.0, 0.0])
    assert float(plumbline(opposite)) == 0.0
    assert float(stationarity_gap(opposite)) == pytest.approx(0.0, abs=1e-7)
    zero = rows([1.0, 0.0], [0.0, 0.0])
    assert float(stationarity_gap(zero)) == 0.0
    assert float(plumbline(zero)) == pytest.approx(1.0)
    assert float(plumbline(torch.zeros(2, 3))) == float(stationarity_gap(torch.zeros(2, 3))) == 0.0


@given(jacobians())
def test_range_and_forms(jacobian: Tensor) -> None:
    value = plumbline(jacobian)
    assert value.dtype == torch.float64
    assert 0.0 <= float(value) <= 1.0
    assert torch.equal(value, plumbline(gramian=gramian_of(jacobian)))
    gap = float(stationarity_gap(jacobian))
    assert gap <= float(jacobian.norm(dim=1).min()) * (1 + 1e-9)
    largest = float(jacobian.norm(dim=1).max())
    assert float(stationarity_gap(jacobian * 1e6)) / 1e6 == pytest.approx(gap, abs=1e-7 * largest)


def test_bad_input() -> None:
    for metric in (plumbline, stationarity_gap):
        with pytest.raises(InvalidInputError, match="exactly one"):
            metric()
        with pytest.raises(InvalidJacobianError):
            metric(torch.zeros(3))
