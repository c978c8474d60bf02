"""COSMOS: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    COSMOS,
)
from mtl_core import InvalidParameterError


def weights_of(method: Any, losses: list[float] | Tensor, present: list[bool] | None = None) -> list[float]:
    """The derivative of the method's scalar by each loss."""
    leaf = torch.as_tensor(losses, dtype=torch.float64).clone().requires_grad_()
    scalar = method(leaf) if present is None else method(leaf, present=torch.tensor(present))
    found: list[float] = torch.autograd.grad(scalar, leaf)[0].tolist()
    return found


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        # cos = 0.6; its derivative by L is (r - cos L/|L|)/|L| = ((1, 0) - 0.6 (0.6, 0.8)) / 5
        (COSMOS(penalty=2.0, weights=[1.0, 0.0]), [3.0, 4.0], [1.0 - 2.0 * 0.128, 2.0 * 0.096]),
    ],
)
def test_weights_by_hand(method: Any, losses: list[float], expected: list[float]) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (COSMOS, {"penalty": -1.0}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
