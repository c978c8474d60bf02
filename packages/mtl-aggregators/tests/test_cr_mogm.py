"""CRMOGM: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import (
    CRMOGM,
    MGDA,
    TrimmedMean,
    make,
)
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_average_of_weights(trunk_problem: Callable[..., Any]) -> None:
    method = CRMOGM(MGDA(), alpha=0.75)
    assert method.weights(torch.eye(2)).tolist() == [0.5, 0.5]
    second = method.weights(torch.diag(torch.tensor([1.0, 3.0])))
    assert second.tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.75, 0.75 * 0.5 + 0.25 * 0.25])
    with pytest.raises(InvalidInputError, match="`weighting` must"):
        CRMOGM(TrimmedMean())
    with pytest.raises(InvalidInputError, match=r"`weighting` must be an instance.*Give MGDA\(\)"):
        CRMOGM(MGDA)  # type: ignore[arg-type]
    nested = CRMOGM(MGDA(normalization="loss"))
    assert nested.takes_losses
    problem, batch, optimizer = trunk_problem()
    report = mtl_core.step(problem, batch, optimizer, nested)
    assert report.weights is not None


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (CRMOGM(MGDA()), rows([2.0, 0.0], [0.0, 1.0]), [0.4, 0.8]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("crmogm", {"alpha": 1.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
