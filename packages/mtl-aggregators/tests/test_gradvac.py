"""GradVac: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import (
    GradVac,
    GroupedGradVac,
    PCGrad,
    make,
)
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.extension import gramian_of


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_gradvac_turns_towards_its_target() -> None:
    method = GradVac(beta=1.0)
    method.weights(gramian_of(rows([1.0, 0.0], [0.6, 0.8])))  # cosine 0.6, which is now the target
    found = method(rows([1.0, 0.0], [0.0, 1.0]))
    # Each is turned to a cosine of 0.6 with the other: p_1 = (1, 3/4), p_2 = (3/4, 1).
    assert found.tolist() == pytest.approx([1.75, 1.75])


def test_gradvac_starts_as_pcgrad(random_rows: Callable[..., Any]) -> None:
    jacobian = torch.from_numpy(random_rows(5, 3))
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    ours = GradVac(generator=first, beta=0.0)(jacobian)
    assert ours.tolist() == pytest.approx(PCGrad(generator=second)(jacobian).tolist())


def test_gradvac_in_groups(trunk_problem: Callable[..., Any]) -> None:
    problem, batch, optimizer = trunk_problem()
    assert GroupedGradVac.of(problem).sizes == (30, 35)
    assert GroupedGradVac.of(problem, per="parameter").sizes == (24, 6, 30, 5)
    jacobian = torch.randn(3, 65, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = GroupedGradVac(sizes=[65])(jacobian)
    assert whole.tolist() == pytest.approx(GradVac()(jacobian).tolist())
    generator = torch.Generator()
    by_hand = torch.cat([GradVac(generator=generator)(part) for part in jacobian.split([30, 35], dim=1)])
    assert GroupedGradVac(sizes=[30, 35])(jacobian).tolist() == pytest.approx(by_hand.tolist())
    method = GroupedGradVac.of(problem, per="parameter")
    for _ in range(3):
        assert mtl_core.step(problem, batch, optimizer, method).weights is None
    with pytest.raises(InvalidInputError, match="65 columns"):
        method(jacobian[:, :10])
    with pytest.raises(InvalidParameterError, match="`sizes` must"):
        GroupedGradVac(sizes=[])


def test_gradvac_learns_nothing_from_a_gradient_that_was_cancelled() -> None:
    first = np.array([0.6, 0.8, 0.3])
    jacobian = torch.from_numpy(np.stack([first, -1.7 * first, np.array([1.0, 2.0, -0.4])]))
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    cosine = float(unit[0] @ unit[2])
    seen = set()
    for seed in range(20):
        method = GradVac(beta=1.0, generator=torch.Generator().manual_seed(seed))
        method(jacobian)
        target = float(method.get_extra_state()["targets"][0, 2])
        # Before it met its opposite, or after, when rounding is all that is left of it.
        assert target == 0.0 or target == pytest.approx(cosine)
        seen.add(target == 0.0)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (GradVac(), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 1.5]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gradvac", {"beta": 2.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
