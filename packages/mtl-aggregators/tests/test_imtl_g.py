"""IMTLG: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    IMTLG,
    ConFIG,
)
from mtl_core.extension import gramian_of


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_equal_projections(random_rows: Callable[..., Any]) -> None:
    for seed in range(10):
        matrix = torch.from_numpy(random_rows(4, seed))
        unit = matrix / matrix.norm(dim=1, keepdim=True)
        for method in (IMTLG(), ConFIG()):
            along = unit @ method(matrix)
            assert along.tolist() == pytest.approx([float(along[0])] * 4, rel=1e-6)
        weights = IMTLG().weights(gramian_of(matrix))
        assert float(weights.sum()) == pytest.approx(1.0)
        # The form of the paper.
        differences, directions = matrix[0] - matrix[1:], unit[0] - unit[1:]
        others = matrix[0] @ directions.T @ torch.linalg.inv(differences @ directions.T)
        assert weights[1:].tolist() == pytest.approx(others.tolist(), rel=1e-6)


def test_imtlg_without_a_normalisation() -> None:
    # Coefficients of unit gradients with equal projections, of either sign, and a norm that makes the weights cancel.
    unit = rows([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2 / 3, 2 / 3, 1 / 3])
    first, second, third = torch.linalg.solve(unit @ unit.T, torch.ones(3, dtype=torch.float64)).tolist()
    assert third < 0.0 or first < 0.0
    negative = 2 if third < 0.0 else 0
    rest = sum((first, second, third)) - (first, second, third)[negative]
    norms = torch.ones(3, dtype=torch.float64)
    norms[negative] = -(first, second, third)[negative] / rest
    assert bool(torch.isfinite(IMTLG().weights(gramian_of(unit * norms.unsqueeze(1)))).all())
    assert IMTLG().weights(torch.zeros(2, 2)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (IMTLG(), AXES, [0.75, 0.75]),
        # Only zero has equal projections on opposite gradients.
        (IMTLG(), rows([1.0, 0.0], [-3.0, 0.0]), [0.0, 0.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)
