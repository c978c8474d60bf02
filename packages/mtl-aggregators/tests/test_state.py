"""What a method remembers is in its state_dict."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import LS, MGDA, CAGrad, FairGrad, NashMTL, PCGrad, UPGrad
from mtl_core.gradients import gramian_of

FACTORIES: list[Callable[[], Any]] = [
    MGDA,
    PCGrad,
    partial(PCGrad, generator=None),
    CAGrad,
    FairGrad,
    NashMTL,
    partial(NashMTL, update_weights_every=3),
    UPGrad,
]


def gramians(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [gramian_of(torch.randn(5, 3, generator=generator, dtype=torch.float64)) for _ in range(count)]


def saved(method: torch.nn.Module) -> dict[str, Any]:
    """A state_dict that has been to disk and back."""
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    return state


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_fresh_object_continues_bit_for_bit(factory: Callable[[], Any], steps: int) -> None:
    original = factory()
    for gramian in gramians(steps):
        original.weights(gramian)
    fresh = factory()
    fresh.load_state_dict(saved(original))
    for gramian in gramians(10)[steps:]:
        assert torch.equal(fresh.weights(gramian), original.weights(gramian))


@pytest.mark.parametrize("factory", FACTORIES)
def test_copies_continue_too(factory: Callable[[], Any]) -> None:
    original = factory()
    original.weights(gramians(1)[0])
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        mine = copy.deepcopy(original)
        for gramian in gramians(5):
            assert torch.equal(twin.weights(gramian), mine.weights(gramian))


def test_scalarisation_has_no_state() -> None:
    assert LS(weights=[1.0, 2.0]).state_dict() == {}
    assert copy.deepcopy(LS(weights=[1.0, 2.0]))(torch.ones(2)) == 3.0
