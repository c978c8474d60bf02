"""PCGrad: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import PCGrad
from mtl_core import InvalidParameterError


def sequential_pcgrad(jacobian: Tensor, orders: list[list[int]]) -> Tensor:
    """PCGrad as it is printed, on the gradients themselves."""
    total = torch.zeros_like(jacobian[0])
    for i, order in enumerate(orders):
        projected = jacobian[i].clone()
        for j in order:
            inner = projected @ jacobian[j]
            if inner < 0:
                projected -= inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += projected
    return total


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_pcgrad_is_one_of_the_orders() -> None:
    jacobian = torch.randn(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    possible = []
    for choice in itertools.product([0, 1], repeat=3):
        others = [[j for j in range(3) if j != i] for i in range(3)]
        orders = [list(reversed(o)) if flip else o for o, flip in zip(others, choice, strict=True)]
        possible.append(sequential_pcgrad(jacobian, orders))
    method = PCGrad(generator=torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(40):
        update = method(jacobian)
        matches = [k for k, p in enumerate(possible) if torch.allclose(p, update, atol=1e-12)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 1


def test_pcgrad_generator_alone_decides() -> None:
    jacobian = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = [PCGrad(generator=torch.Generator().manual_seed(5))(jacobian) for _ in range(2)]
    assert torch.equal(first[0], first[1])
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    PCGrad()(jacobian)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (PCGrad(), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 1.5]),
        (PCGrad(reduction="mean"), rows([1.0, 0.0], [-1.0, 1.0]), [0.25, 0.75]),
        (PCGrad(), rows([1.0, 0.0], [0.5, 1.0]), [1.5, 1.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pcgrad", {"reduction": "max"}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)
