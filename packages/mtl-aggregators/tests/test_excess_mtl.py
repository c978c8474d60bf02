"""ExcessMTL: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    ExcessMTL,
    make,
)
from mtl_core import InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_excess_risks() -> None:
    method = ExcessMTL(robust_step_size=1.0)
    method(AXES)
    # e = g²/√(g² + g'²): (3, 1) first; then 9/√18 and 16/√17, over 3 and 1.
    update = method(rows([3.0, 0.0], [0.0, 4.0]))
    shares = torch.softmax(torch.tensor([0.5**0.5, 16 / 17**0.5]), dim=0) * 2
    assert update.tolist() == pytest.approx([3 * float(shares[0]), 4 * float(shares[1])])


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (ExcessMTL(), AXES, [3.0, 1.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("excessmtl", {"robust_step_size": 0.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
