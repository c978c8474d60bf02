"""FairGrad: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import FairGrad
from mtl_core import InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_fairgrad_released_variant_is_the_same_problem() -> None:
    jacobian = rows([1.0, 0.2, 0.0], [-0.3, 1.0, 0.1], [0.4, 0.4, 2.0])
    released = FairGrad(alpha=2.0, variant="released")
    assert released(jacobian).tolist() == pytest.approx(FairGrad(alpha=2.0)(jacobian).tolist(), rel=1e-4)
    assert released.last_solution is not None
    assert released.last_solution.residual < 1e-3


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (FairGrad(alpha=1.0), rows([2.0, 0.0], [0.0, 1.0]), [1.0, 1.0]),
        (FairGrad(alpha=2.0), rows([8.0, 0.0], [0.0, 1.0]), [0.5, 1.0]),
        (FairGrad(alpha=2.0, paper_scale=True), rows([8.0, 0.0], [0.0, 1.0]), [1.0, 2.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fairgrad", {"alpha": 0.0}),
        ("fairgrad", {"alpha": -1.0}),
        ("fairgrad", {"variant": "mine"}),
        ("fairgrad", {"ridge": 0.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)
