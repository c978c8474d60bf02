"""MoCo: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import (
    DBMTL,
    MoCo,
    make,
)
from mtl_core import InvalidInputError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_both_variants_of_moco() -> None:
    paper, libmtl = MoCo(beta=0.5, gamma=0.1), MoCo(beta=0.5, gamma=0.1, variant="libmtl")
    losses = torch.tensor([2.0, 1.0])
    # libmtl: y = (1, 0) and (0, 1/2); w = softmax(1/2 − 0.05, 1/2 − 0.0125).
    shares = torch.softmax(torch.tensor([0.45, 0.4875]), dim=0)
    found = libmtl(AXES, losses=losses)
    assert found.tolist() == pytest.approx([float(shares[0]), 0.5 * float(shares[1])])
    # paper: y = (3/2, 0) and (0, 1/2); w = (1/2 − 0.1125, 1/2 − 0.0125) + 1/16.
    assert paper(AXES).tolist() == pytest.approx([1.5 * 0.45, 0.5 * 0.55])
    with pytest.raises(InvalidInputError, match="needs `losses`"):
        libmtl(AXES)


@pytest.mark.parametrize("method", [MoCo(), MoCo(variant="libmtl"), DBMTL()])
def test_methods_with_losses_step(method: Any, trunk_problem: Callable[..., Any]) -> None:
    problem, batch, optimizer = trunk_problem()
    before = problem.losses(batch).values.detach().sum()
    for _ in range(20):
        report = mtl_core.step(problem, batch, optimizer, method, max_norm=1.0)
    assert report.weights is None
    assert float(problem.losses(batch).values.detach().sum()) < float(before)


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (MoCo(beta=1.0), rows([2.0, 0.0], [0.0, 1.0]), [0.85, 0.575]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("moco", {"variant": "mine"}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
