"""CAGrad: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import CAGrad
from mtl_core import InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (CAGrad(c=0.5), rows([1.0, 0.0], [0.0, 1.0]), [0.75, 0.75]),
        (CAGrad(c=0.5, rescale="c"), rows([1.0, 0.0], [0.0, 1.0]), [0.5, 0.5]),
        (CAGrad(c=0.5, rescale="c2"), rows([1.0, 0.0], [0.0, 1.0]), [0.6, 0.6]),
        (CAGrad(c=0.5, paper_scale=True), rows([1.0, 0.0], [0.0, 1.0]), [1.2, 1.2]),
        (CAGrad(c=0.0), rows([1.0, 0.0], [-3.0, 1.0]), [-1.0, 0.5]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cagrad", {"c": -0.1}),
        ("cagrad", {"c": float("inf")}),
        ("cagrad", {"rescale": "c3"}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)
