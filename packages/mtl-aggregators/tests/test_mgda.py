"""MGDA: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import MGDA
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_mgda_normalised_by_losses() -> None:
    gramian = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    losses = torch.tensor([2.0, 1.0])
    # g_1/2 and g_2 have equal norms; with l2 on top they are 1/2 and 1 long.
    assert MGDA(normalization="loss").weights(gramian, losses=losses).tolist() == pytest.approx([0.5, 0.5])
    assert MGDA(normalization="loss+").weights(gramian, losses=losses).tolist() == pytest.approx([0.8, 0.2])
    with pytest.raises(InvalidInputError, match="`losses` must be given"):
        MGDA(normalization="loss").weights(gramian)
    with pytest.raises(InvalidInputError, match="must be positive"):
        MGDA(normalization="loss").weights(gramian, losses=torch.tensor([1.0, 0.0]))
    absent = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    weights = MGDA(normalization="loss+").weights(absent, losses=torch.tensor([2.0, float("nan")]))
    assert weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (MGDA(), rows([2.0, 0.0], [0.0, 1.0]), [0.4, 0.8]),
        (MGDA(normalization="l2"), rows([2.0, 0.0], [0.0, 1.0]), [1.0, 0.5]),
        (MGDA(paper_scale=True), rows([2.0, 0.0], [0.0, 1.0]), [0.8, 1.6]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mgda", {"normalization": "l1"}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)
