"""UPGrad: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import UPGrad
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_preference_must_match_the_tasks() -> None:
    with pytest.raises(InvalidInputError, match="one entry per task"):
        UPGrad(preference=[1.0, 1.0]).weights(torch.eye(3))


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (UPGrad(), rows([1.0, 0.0], [-1.0, 1.0]), [0.25, 0.75]),
        (UPGrad(preference=[1.0, 0.0]), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 0.5]),
        (UPGrad(preference=[0.0, 2.0]), rows([1.0, 0.0], [-1.0, 1.0]), [0.0, 2.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("upgrad", {"preference": [1.0, -1.0]}),
        ("upgrad", {"preference": [[1.0]]}),
        ("upgrad", {"ridge": -1e-3}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)
