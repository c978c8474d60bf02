from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtl_teleport.rectifier import lean_rectifiers, rectified


def _second(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The value, the first derivative and that of its norm, of a function with curvature on both sides."""
    y = (function(x.sin()) * 2.0).cos().sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    return [y.detach(), first.detach(), *torch.autograd.grad(first.norm(), x)]


def test_the_same_as_torchs_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    for one, other in zip(_second(rectified, x), _second(torch.relu, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


def test_against_finite_differences() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rectified, (x,))
    assert torch.autograd.gradgradcheck(rectified, (x,))


def _zeros_of_a_second_derivative(function: Callable[[Tensor], Tensor]) -> int:
    x = torch.randn(4, requires_grad=True)
    (first,) = torch.autograd.grad(function(x * 2.0).square().sum(), x, create_graph=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.autograd.grad(first.square().sum(), x)
    return sum(event.count for event in seen.key_averages() if event.key == "aten::zeros_like")


def test_no_zeros_by_its_input() -> None:
    assert _zeros_of_a_second_derivative(torch.relu) > 0
    assert _zeros_of_a_second_derivative(rectified) == 0


@pytest.mark.parametrize(
    ("layer", "size", "own"),
    [
        (nn.ReLU(), 1 << 17, True),
        (nn.ReLU(), (1 << 17) - 1, False),
        (nn.ReLU(inplace=True), 1 << 17, False),
        (nn.ReLU6(), 1 << 17, False),
    ],
)
def test_layers(layer: nn.Module, size: int, own: bool) -> None:
    with lean_rectifiers(layer):
        y = layer(torch.randn(size, requires_grad=True) * 2.0)
    assert y.grad_fn is not None
    assert (y.grad_fn.name() == "_ForwardBackward") is own
    assert "forward" not in vars(layer)
