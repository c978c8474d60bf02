"""Krum: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    Krum,
    TrimmedMean,
    make,
)
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_krum_needs_enough_tasks() -> None:
    with pytest.raises(InvalidInputError, match="at least 5 tasks"):
        Krum(n_byzantine=1).weights(torch.eye(4))
    with pytest.raises(InvalidInputError, match="at least 3 rows"):
        TrimmedMean()(torch.eye(2))


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (Krum(), rows([1.0, 0.0], [1.1, 0.0], [0.0, 9.0]), [1.0, 0.0]),
        (Krum(n_selected=2), rows([1.0, 0.0], [1.1, 0.0], [0.0, 9.0]), [1.05, 0.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("krum", {"n_byzantine": -1}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
