"""IMTL: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtl_aggregators import (
    IMTL,
    IMTLG,
)
from mtl_core import InvalidParameterError


def test_imtl_has_the_direction_of_its_gradient_half() -> None:
    gramian = torch.tensor([[4.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    method = IMTL(lr=0.1)
    assert torch.allclose(method.weights(gramian), IMTLG().weights(gramian))
    for _ in range(20):
        method.after_step(torch.tensor([3.0, 0.2]), lambda: torch.zeros(2))
    found, plain = method.weights(gramian), IMTLG().weights(gramian)
    assert torch.allclose(found / found.sum(), plain / plain.sum())
    assert not torch.allclose(found, plain)
    # s = (-2, 2) but for Adam's rounding of the step length; then IMTL-G on E G E, times E.
    scale = method.get_extra_state()["scales"].exp()
    assert torch.allclose(found, IMTLG().weights(gramian * scale * scale[:, None]) * scale)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (IMTL, {"lr": 0.0}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
