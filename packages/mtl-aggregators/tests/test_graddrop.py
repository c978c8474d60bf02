"""GradDrop: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    GradDrop,
    make,
)
from mtl_core import InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_graddrop_keeps_one_sign() -> None:
    jacobian = torch.randn(4, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = GradDrop()(jacobian)
    positive, negative = jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)
    kept = torch.where(update > 0, positive, negative)
    assert torch.allclose(update, kept)
    mean = torch.stack([GradDrop(generator=torch.Generator().manual_seed(s))(jacobian) for s in range(400)]).mean(0)
    purity = 0.5 * (1 + jacobian.sum(0) / jacobian.abs().sum(0))
    assert float((mean - (purity * positive + (1 - purity) * negative)).abs().max()) < 0.6


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (GradDrop(), rows([1.0, -2.0], [3.0, -1.0]), [4.0, -3.0]),
        (GradDrop(leak=[1.0, 1.0]), rows([1.0, -2.0], [-3.0, 1.0]), [-2.0, -1.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("graddrop", {"leak": [2.0]}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
