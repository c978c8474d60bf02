"""PCD: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    PCD,
    make,
)
from mtl_aggregators.solvers import least_distance
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
def test_pcd_against_cvxpy(n_tasks: int, random_rows: Callable[..., Any], nearest: Callable[..., Any]) -> None:
    for seed in range(5):
        matrix = random_rows(n_tasks, seed)
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        expected = nearest(unit[1:], unit[0], np.full(n_tasks - 1, 0.3))
        expected *= np.linalg.norm(matrix[0]) / np.linalg.norm(expected)
        found = PCD(tau=0.3)(torch.from_numpy(matrix)).numpy()
        assert found == pytest.approx(expected, abs=1e-4 * np.linalg.norm(matrix[0]))


def test_contradicting_demands_are_reported() -> None:
    assert least_distance(rows([1.0, -1.0], [-1.0, 1.0]).numpy(), np.array([1.0, 1.0])).regularised
    method = PCD(tau=0.5)
    jacobian = rows([1.0, 0.0], [0.0, 1.0], [0.0, -1.0])
    assert method(jacobian).tolist() == [1.0, 0.0]
    assert [event.kind for event in method.pop_events()] == ["regularised_solve"]
    with pytest.raises(InvalidInputError, match="primary task"):
        PCD(primary=3)(jacobian)


def test_pcd_normalises_by_the_average() -> None:
    method = PCD(tau=0.5, beta=0.5)
    method(rows([1.0, 0.0], [0.0, 2.0]))
    # v̂_2 = (4/4 + 16/2) / (3/4) = 12: the normalised norm is 4/√12, and half its square is asked of x.
    found = method(rows([1.0, 0.0], [0.0, 4.0]))
    assert float(found[1] / found[0]) == pytest.approx(0.5 * 4 / 12**0.5)


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (PCD(tau=0.0), rows([1.0, 0.0], [-1.0, 1.0]), [0.5**0.5, 0.5**0.5]),
        (PCD(tau=0.0), rows([1.0, 0.0], [1.0, 5.0]), [1.0, 0.0]),
        (PCD(tau=0.5), rows([1.0, 0.0], [0.0, 7.0]), [0.8**0.5, 0.2**0.5]),
        (PCD(primary=1), rows([0.0, 0.0], [3.0, 4.0]), [3.0, 4.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pcd", {"tau": 1.5}),
        ("pcd", {"primary": -1}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
