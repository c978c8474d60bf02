from __future__ import annotations

import pytest
import torch

from mtl_teleport import inner_product as module
from mtl_teleport.inner_product import inner_product, length_of


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_add_up(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    torch.manual_seed(0)
    a, b, c = (torch.randn(size, 3).to(dtype) for _ in range(3))
    # The difference is taken in double precision: in bfloat16 it is no number of that dtype.
    difference = a.double() - c.double()
    expected = difference.flatten() @ b.double().flatten()
    assert float(inner_product(a, b, less=c)) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)
    assert float(inner_product(a, less=c)) == pytest.approx(float(difference.square().sum()), rel=1e-12)
    assert inner_product(a).dtype == torch.float64


def test_length_by_hand() -> None:
    assert length_of({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0
    assert length_of({"a": torch.tensor([3.0])}, start={"a": torch.tensor([1.0])}) == 2.0
