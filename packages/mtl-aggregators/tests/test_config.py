"""ConFIG: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    ConFIG,
    make,
)
from mtl_core import InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (ConFIG(), AXES, [2.0, 2.0]),
        (ConFIG(preference=[1.0, 2.0]), rows([1.0, 0.0], [0.0, 1.0]), [0.6, 1.2]),
        (ConFIG(), rows([1.0, 0.0], [-1.0, 0.0]), [0.0, 0.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("config", {"preference": [-1.0, 1.0]}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
