"""PBI: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mtl_aggregators import (
    PBI,
)
from mtl_core import InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        (PBI(theta=2.0, weights=[1.0, 0.0]), [3.0, 4.0], [1.0, 2.0]),
        (PBI(theta=5.0), [2.0, 2.0], [0.5**0.5, 0.5**0.5]),  # on the line: no pull to either side
        (PBI(theta=1.0, weights=[1.0, 0.0], reference=[0.0, 5.0]), [3.0, 4.0], [1.0, -1.0]),
    ],
)
def test_weights_by_hand(
    method: Any, losses: list[float], expected: list[float], weights_of: Callable[..., Any]
) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (PBI, {"theta": -1.0}),
        (PBI, {"reference": "x"}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
