"""LS, SI, GLS, RLW: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mtl_aggregators
from mtl_aggregators import (
    FAMO,
    GLS,
    IMTLL,
    LS,
    PBI,
    RLW,
    SI,
    STCH,
    UW,
)
from mtl_core import InvalidInputError, InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


def test_scalarisation() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert LS()(losses).item() == 7.0
    assert LS(reduction="mean")(losses).item() == pytest.approx(7 / 3)
    weighted = LS(weights=[1.0, 0.5, 0.25])(losses)
    assert weighted.item() == 3.0
    assert torch.autograd.grad(weighted, losses)[0].tolist() == [1.0, 0.5, 0.25]
    present = torch.tensor([True, False, True])
    assert LS(reduction="mean")(losses, present=present).item() == 2.5
    with pytest.raises(InvalidInputError, match="one loss per weight"):
        LS(weights=[1.0, 2.0])(losses)
    with pytest.raises(InvalidInputError, match="shape"):
        LS()(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ls", {"weights": [1.0, -1.0]}),
        ("ls", {"weights": []}),
        ("ls", {"weights": [0.0, 0.0]}),
        ("ls", {"weights": [float("nan")]}),
        ("ls", {"weights": "ab"}),
        ("ls", {"reduction": "max"}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)


def test_scalars_by_hand() -> None:
    losses = torch.tensor([2.0, 8.0], dtype=torch.float64)
    assert float(SI()(losses)) == pytest.approx(math.log(16.0))
    assert float(GLS()(losses)) == pytest.approx(4.0)
    assert float(UW()(losses)) == pytest.approx(5.0)
    assert float(IMTLL()(losses)) == pytest.approx(10.0)
    assert float(STCH(mu=1.0, weights=[1.0, 1.0])(losses)) == pytest.approx(math.log(math.e**2 + math.e**8))
    assert float(PBI(theta=2.0, weights=[0.0, 1.0])(losses)) == pytest.approx(8.0 + 2.0 * 2.0)


def test_a_geometric_mean_does_not_leave_its_range() -> None:
    losses = torch.full((64,), 1e-20)
    assert float(GLS()(losses)) == pytest.approx(1e-20, rel=1e-4)
    assert float(torch.prod(losses)) == 0.0


def test_random_weights(weights_of: Callable[..., Any]) -> None:
    for distribution in ("normal", "dirichlet"):
        method = RLW(distribution=distribution)  # type: ignore[arg-type]
        draws = torch.tensor([weights_of(method, [1.0, 1.0, 1.0]) for _ in range(2000)])
        assert torch.allclose(draws.sum(1), torch.ones(2000), atol=1e-6)
        assert float(draws.min()) > 0.0
        assert draws.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    # Dirichlet(1, 1, 1): variance 1/18 in each coordinate.
    assert draws.var(0).tolist() == pytest.approx([1 / 18] * 3, rel=0.1)
    again = RLW(generator=torch.Generator().manual_seed(3)), RLW(generator=torch.Generator().manual_seed(3))
    assert weights_of(again[0], [1.0, 2.0]) == weights_of(again[1], [1.0, 2.0])
    softmax = torch.randn(2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(0)
    assert weights_of(RLW(generator=torch.Generator().manual_seed(3)), [1.0, 2.0]) == close(*softmax.tolist())


def test_settings_keep_their_digits(weights_of: Callable[..., Any]) -> None:
    assert weights_of(LS(weights=[0.1, 0.7]), [1.0, 1.0]) == [0.1, 0.7]
    assert FAMO(bound=[0.1]).bound.tolist() == [0.1]


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        (LS(weights=[1.0, 3.0]), [2.0, 5.0], [1.0, 3.0]),
        (SI(), [2.0, 5.0], [0.5, 0.2]),
        (GLS(), [2.0, 8.0], [1.0, 0.25]),  # 4 / (2 * 2), 4 / (2 * 8)
    ],
)
def test_weights_by_hand(
    method: Any, losses: list[float], expected: list[float], weights_of: Callable[..., Any]
) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (RLW, {"distribution": "uniform"}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
