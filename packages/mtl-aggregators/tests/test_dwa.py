"""DWA: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtl_aggregators import (
    DWA,
)
from mtl_core import InvalidInputError, InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


def test_dwa_by_epochs(weights_of: Callable[..., Any], seen: Callable[..., Any]) -> None:
    method = DWA(temperature=1.0)
    with pytest.raises(InvalidInputError, match="`start_epoch` must be called"):
        method(torch.ones(2))
    for epoch, batches in enumerate(([[1.0, 3.0], [3.0, 5.0]], [[1.0, 4.0]])):
        method.start_epoch(epoch)
        assert weights_of(method, [1.0, 1.0]) == [1.0, 1.0]
        seen(method, *batches)
    method.start_epoch(2)
    method.start_epoch(2)
    # Means (2, 4), then (1, 4): ratios 1/2 and 1.
    share = 1.0 / (1.0 + math.exp(0.5))
    assert weights_of(method, [7.0, 7.0]) == close(2 * share, 2 * (1 - share))
    seen(method, [1.0, float("nan")])
    method.start_epoch(3)
    # The second task was absent for a whole epoch: it has no mean, and the ratio 1.
    assert weights_of(method, [7.0, 7.0]) == close(1.0, 1.0)


def test_dwa_by_windows(weights_of: Callable[..., Any], seen: Callable[..., Any]) -> None:
    method = DWA(variant="window", window=2, temperature=1.0)
    seen(method, [2.0, 2.0], [2.0, 2.0], [1.0, 2.0])
    assert weights_of(method, [1.0, 1.0]) == [1.0, 1.0]
    seen(method, [1.0, 2.0])
    share = 1.0 / (1.0 + math.exp(0.5))
    assert weights_of(method, [1.0, 1.0]) == close(2 * share, 2 * (1 - share))
    assert DWA(variant="window").window == 25


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (DWA, {"temperature": 0.0}),
        (DWA, {"window": 0}),
        (DWA, {"variant": "x"}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
