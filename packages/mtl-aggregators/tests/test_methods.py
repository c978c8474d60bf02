"""What methods on the Gramian have in common at their door."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import MGDA, CAGrad, FairGrad, NashMTL, PCGrad, UPGrad
from mtl_core import InvalidJacobianError, individual_progress
from mtl_core.extension import gramian_of

GRAMIAN_METHODS = (MGDA, PCGrad, CAGrad, FairGrad, NashMTL, UPGrad)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_one_task(method: Any) -> None:
    gradient = rows([3.0, 4.0])
    update = method()(gradient)
    assert individual_progress(gradient, update).tolist() == pytest.approx([1.0])
    assert torch.isfinite(method().weights(torch.zeros(1, 1))).all()


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_dtype_and_shape_follow_the_gradients(method: Any) -> None:
    jacobian = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        update = method()(jacobian.to(dtype))
        assert update.dtype == dtype
        assert update.shape == (7,)
    weights = method().weights(gramian_of(jacobian))
    assert weights.dtype == torch.float64
    assert weights.shape == (3,)


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_bad_matrices(method: Any) -> None:
    with pytest.raises(InvalidJacobianError, match="two dimensions"):
        method()(torch.zeros(3))
    with pytest.raises(InvalidJacobianError, match="floating"):
        method()(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(InvalidJacobianError, match="finite"):
        method()(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InvalidJacobianError, match="square"):
        method().weights(torch.zeros(3, 2))
    with pytest.raises(InvalidJacobianError, match="finite"):
        method().weights(torch.full((2, 2), float("inf")))
