"""A small network whose tasks conflict in a dominated way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtl_core import Problem

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A trunk with batch norm and dropout between its two layers, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 5), nn.Tanh()
        )
        self.big = nn.Linear(5, 2)
        self.small = nn.Linear(5, 2)


def _losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    z = model.trunk(batch[0])
    return {
        "big": 5 * (model.big(z) - batch[1]).square().mean(),
        "small": (model.small(z) + batch[1]).square().mean(),
    }


def make(dtype: torch.dtype = torch.float64) -> tuple[Problem, Batch]:
    """Two regressions to opposite targets from the same head weights, one five times the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Net().to(dtype)
        net.small.load_state_dict(net.big.state_dict())
        batch = (torch.randn(32, 4, dtype=dtype), 2.0 + torch.randn(32, 2, dtype=dtype))
    return Problem(net, _losses, shared=net.trunk, tasks=("big", "small")), batch


@pytest.fixture
def conflicting() -> Callable[..., tuple[Problem, Batch]]:
    """A function that makes the problem and its batch anew, the same every time."""
    return make
