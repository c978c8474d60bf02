"""MoDo: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtl_aggregators import (
    MoDo,
    make,
)
from mtl_core import InvalidParameterError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("modo", {"gamma": 0.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)


def test_first_step_by_hand() -> None:
    cross = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    # (1/2, 1/2) − 0.1 (1/2, 2), projected: 0.075 is missing from the sum to each.
    assert MoDo(gamma=0.1, rho=0.0).weigh(cross).tolist() == pytest.approx([0.575, 0.425])
