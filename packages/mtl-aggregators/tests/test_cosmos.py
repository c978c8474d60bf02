"""COSMOS: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mtl_aggregators import (
    COSMOS,
)
from mtl_core import InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        # cos = 0.6; its derivative by L is (r - cos L/|L|)/|L| = ((1, 0) - 0.6 (0.6, 0.8)) / 5
        (COSMOS(penalty=2.0, weights=[1.0, 0.0]), [3.0, 4.0], [1.0 - 2.0 * 0.128, 2.0 * 0.096]),
    ],
)
def test_weights_by_hand(
    method: Any, losses: list[float], expected: list[float], weights_of: Callable[..., Any]
) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (COSMOS, {"penalty": -1.0}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
