"""DBMTL: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    DBMTL,
    make,
)
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_db_mtl_by_hand() -> None:
    method = DBMTL(beta=0.5)
    first = method(AXES, losses=torch.tensor([3.0, 0.5]))
    # Logarithms' gradients (1, 0) and (0, 2), halved: lengths 1/2 and 1, both made 1.
    assert first.tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(InvalidInputError, match="needs `losses`"):
        DBMTL()(AXES)
    with pytest.raises(InvalidInputError, match="must be positive"):
        DBMTL()(AXES, losses=torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (DBMTL(beta=0.5, log_losses=False), AXES, [1.5, 1.5]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dbmtl", {"beta": 1.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
