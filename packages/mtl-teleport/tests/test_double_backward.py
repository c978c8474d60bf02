"""Models whose usual kernels cannot be differentiated twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem
from mtl_core.extension import collect_problem
from mtl_teleport import COST
from mtl_teleport.double_backward import told_what_to_do


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2.0 * gradients[0]


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(Doubled.apply(self.layer(x)))


class Model(nn.Module):
    """A trunk over sequences with two heads that disagree."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found = self.trunk(x)
        z = found[0] if isinstance(found, tuple) else found
        return torch.stack([(head(z) - i).square().mean() for i, head in enumerate(self.heads)])


def teleport(trunk: nn.Module, **settings: Any) -> Any:
    torch.manual_seed(0)
    problem = Problem(Model(trunk), lambda model, x: model(x), shared="trunk", tasks=("a", "b"))
    batch = torch.randn(6, 5, 8)
    gradients = collect_problem(problem, problem.losses(batch))
    return COST(aim=None, max_steps=5, **settings).teleport(problem, [batch], gradients, lr=1e-3)


@pytest.mark.parametrize(
    "trunk",
    [
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1),
        nn.LSTM(8, 8, batch_first=True),
        nn.GRU(8, 8, batch_first=True),
    ],
    ids=["attention", "lstm", "gru"],
)
@pytest.mark.parametrize("search", ["projected", "penalty"])
def test_fused_kernels_are_passed_by(trunk: nn.Module, search: str) -> None:
    report = teleport(trunk, search=search)
    assert report.accepted
    assert report.adapter_steps > 0
    assert report.length > 0.0


def test_a_function_that_hides_its_second_derivative() -> None:
    with pytest.raises(InvalidInputError, match=r"got Doubled, .*sharpness='ascent'"):
        teleport(Once())
    assert teleport(Once(), sharpness="ascent").accepted


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), told_what_to_do("sharpness='exact'"):
        raise RuntimeError("out of memory")
    with (
        pytest.raises(InvalidInputError, match=r"for conflict_weight=1, got: derivative for f is not implemented"),
        told_what_to_do("conflict_weight=1"),
    ):
        raise RuntimeError("derivative for f is not implemented\nmore")
