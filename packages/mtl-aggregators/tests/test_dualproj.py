"""DualProj: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    DualProj,
    make,
)
from mtl_core import InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
def test_dualproj_against_cvxpy(n_tasks: int, random_rows: Callable[..., Any], nearest: Callable[..., Any]) -> None:
    for seed in range(5):
        matrix = random_rows(n_tasks, seed)
        expected = nearest(matrix, matrix.mean(axis=0), np.zeros(n_tasks))
        found = DualProj()(torch.from_numpy(matrix)).numpy()
        assert found == pytest.approx(expected, abs=1e-5 * np.abs(matrix).max())


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (DualProj(), rows([1.0, 0.0], [-3.0, 1.0]), [0.0, 0.5]),
        (DualProj(preference=[1.0, 0.0]), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 0.5]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dualproj", {"ridge": -1.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
