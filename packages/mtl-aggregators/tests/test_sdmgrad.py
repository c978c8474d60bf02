"""SDMGrad: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtl_aggregators import (
    SDMGrad,
    make,
)
from mtl_core import InvalidParameterError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sdmgrad", {"momentum": 1.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)


def test_weights_by_hand() -> None:
    cross = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    # One step of length 1 on A/2.25: (1/2 − 0.5/2.25, 1/2 − 2/2.25), projected.
    assert SDMGrad(lambda_=0.0, n_iters=1, lr=1.0).weigh(cross).tolist() == pytest.approx([5 / 6, 1 / 6])
    pulled = SDMGrad(lambda_=1.0, n_iters=200, lr=0.05, preference=[1.0, 0.0]).weigh(cross)
    # w minimises w²/2 + 2(1 − w)² + w: w = 3/5, and the mean of (w, 1 − w) and (1, 0) is the update's.
    assert pulled.tolist() == pytest.approx([0.8, 0.2], abs=1e-6)
    assert SDMGrad().weigh(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0.5, 0.5]
