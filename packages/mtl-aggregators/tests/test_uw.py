"""UW: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtl_aggregators import (
    IMTLL,
    UW,
)
from mtl_core import InvalidInputError, InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


def test_trained_scales_follow_their_gradient(weights_of: Callable[..., Any], seen: Callable[..., Any]) -> None:
    # At s = 0 the gradients are (1 - L)/2 and L - 1; the first step of Adam has length lr.
    for method, sign in ((UW(lr=0.1), 1.0), (IMTLL(lr=0.1), -1.0)):
        seen(method, [4.0, 0.5])
        assert method.trained is not None
        assert method.trained.tolist() == close(sign * 0.1, -sign * 0.1)
    assert weights_of(UW(), [1.0]) == [0.5]


def test_trained_scales_start_where_they_are_told(weights_of: Callable[..., Any], seen: Callable[..., Any]) -> None:
    # λ = e^{-s}/2, and e^s.
    assert weights_of(UW(start=-0.5), [1.0, 3.0]) == close(math.exp(0.5) / 2, math.exp(0.5) / 2)
    assert weights_of(UW(start=[0.0, 1.0]), [1.0, 3.0]) == close(0.5, math.exp(-1.0) / 2)
    assert weights_of(IMTLL(start=[0.0, -0.5]), [1.0, 3.0]) == close(1.0, math.exp(-0.5))
    for method in (UW(start=-0.5), IMTLL(start=-0.5)):
        assert method.facts.scale(3) == pytest.approx(weights_of(method, [1.0])[0])
        before = weights_of(method, [2.0, 1.0])
        seen(method, [2.0, 1.0])
        assert weights_of(method, [2.0, 1.0]) != before
        method.reset()
        assert weights_of(method, [2.0, 1.0]) == before
    with pytest.raises(InvalidInputError, match="`start` must hold one entry per task, got 2 for 3"):
        UW(start=[0.0, 1.0])(torch.ones(3))


@pytest.mark.parametrize(("factory", "weight"), [(UW, 0.5), (IMTLL, 1.0)])
def test_trained_scales_bring_losses_to_one(
    factory: Any, weight: float, weights_of: Callable[..., Any], seen: Callable[..., Any]
) -> None:
    method = factory(lr=0.05)
    for _ in range(1500):
        seen(method, [4.0, 0.5])
    assert weights_of(method, [4.0, 0.5]) == pytest.approx([weight / 4.0, weight / 0.5], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        (UW(), [2.0, 5.0], [0.5, 0.5]),
    ],
)
def test_weights_by_hand(
    method: Any, losses: list[float], expected: list[float], weights_of: Callable[..., Any]
) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (UW, {"lr": 0.0}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
