"""STCH: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtl_aggregators import (
    STCH,
)
from mtl_core import InvalidInputError, InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


def test_stch_warms_up(weights_of: Callable[..., Any], seen: Callable[..., Any]) -> None:
    method = STCH(mu=0.5, variant="warmup", warmup_epochs=1)
    with pytest.raises(InvalidInputError, match="`start_epoch` must be called"):
        method(torch.ones(2))
    method.start_epoch(0)
    seen(method, [100.0, 100.0])
    assert weights_of(method, [2.0, 4.0]) == close(0.5, 0.25)
    method.start_epoch(1)
    seen(method, [1.0, 2.0], [3.0, 6.0])
    assert weights_of(method, [2.0, 4.0]) == close(0.5, 0.25)
    method.start_epoch(2)
    # Relative to the means (2, 4): both 1, so a half each, times m / L.
    assert weights_of(method, [2.0, 4.0]) == close(0.5, 0.25)
    # (2, 1)^(1/mu) = (4, 1): shares 4/5 and 1/5.
    assert weights_of(method, [4.0, 4.0]) == close(2 * 0.8 / 4.0, 2 * 0.2 / 4.0)
    late = STCH(variant="warmup")
    late.start_epoch(9)
    with pytest.raises(InvalidInputError, match="Start at an earlier epoch"):
        late(torch.ones(2))


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        (STCH(mu=1.0, weights=[1.0, 2.0]), [math.log(3.0), 0.0], [0.75, 0.5]),  # softmax (3/4, 1/4) times (1, 2)
        (STCH(mu=2.0), [1.0, 1.0], [0.25, 0.25]),
        (STCH(mu=1.0, weights=[1.0, 1.0], reference=[1.0, 0.0]), [1.0 + math.log(3.0), 0.0], [0.75, 0.25]),
    ],
)
def test_weights_by_hand(
    method: Any, losses: list[float], expected: list[float], weights_of: Callable[..., Any]
) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (STCH, {"mu": 0.0}),
        (STCH, {"variant": "x"}),
        (STCH, {"warmup_epochs": -1}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
