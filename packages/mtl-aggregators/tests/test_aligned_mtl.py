"""AlignedMTL: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    AlignedMTL,
    make,
)
from mtl_core import InvalidParameterError
from mtl_core.extension import gramian_of


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_aligned_gradients_are_orthogonal_and_equally_long(random_rows: Callable[..., Any]) -> None:
    matrix = torch.from_numpy(random_rows(4, 1))
    aligned = torch.stack([AlignedMTL(preference=row)(matrix) for row in torch.eye(4).tolist()])
    gramian = gramian_of(aligned)
    smallest = torch.linalg.svdvals(matrix)[-1] ** 2
    assert torch.allclose(gramian, smallest * torch.eye(4, dtype=torch.float64), atol=1e-9 * float(smallest))


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (AlignedMTL(), AXES, [1.0, 1.0]),
        (AlignedMTL(scale_mode="median"), AXES, [1.0, 1.0]),
        (AlignedMTL(scale_mode="rmse"), AXES, [5**0.5, 5**0.5]),
        (AlignedMTL(preference=[1.0, 0.0]), AXES, [1.0, 0.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alignedmtl", {"scale_mode": "max"}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
