from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_core import Problem
from mtl_teleport import LoRA
from mtl_teleport.conditions import Conditions
from mtl_teleport.convolution import convolution, lean_convolutions
from mtl_teleport.double_backward import twice_differentiable
from mtl_teleport.sharpness import ExactSharpness, Point

# (dimensions, kernel, stride, padding, dilation, groups)
SETTINGS = [
    (1, 3, [1], [1], [1], 1),
    (2, 3, [1, 1], [1, 1], [1, 1], 1),
    (2, 3, [2, 1], [0, 2], [1, 2], 1),
    (2, 2, [2, 2], [0, 0], [1, 1], 2),
    (2, 1, [1, 1], [0, 0], [1, 1], 4),
    (3, 2, [1, 2, 1], [1, 0, 1], [1, 1, 1], 1),
]


def _inputs(setting: tuple[int, int, list[int], list[int], list[int], int], *, bias: bool) -> list[Tensor | None]:
    places, kernel, *_, groups = setting
    torch.manual_seed(0)
    x = torch.randn(2, 4, *[5] * places, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4 // groups, *[kernel] * places, dtype=torch.float64, requires_grad=True)
    return [x, weight, torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_as_torchs_own(setting: tuple[int, int, list[int], list[int], list[int], int], bias: bool) -> None:
    places, _, stride, padding, dilation, groups = setting
    own = (functional.conv1d, functional.conv2d, functional.conv3d)[places - 1]
    found: list[list[Tensor]] = []
    for which in (convolution, own):
        inputs = _inputs(setting, bias=bias)
        there = [t for t in inputs if t is not None]
        y = which(*inputs, stride, padding, dilation, groups)  # type: ignore[operator]
        first = torch.autograd.grad(y.sin().sum(), there, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum().sqrt(), there)
        found.append([y.detach(), *(g.detach() for g in first), *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("by", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_by_some_of_its_inputs_alone(by: tuple[int, ...]) -> None:
    found = []
    for which in (convolution, functional.conv2d):
        inputs = [t if k in by else t.detach() for k, t in enumerate(_inputs(SETTINGS[1], bias=True)) if t is not None]
        there = [inputs[k] for k in by]
        y = which(*inputs, *SETTINGS[1][2:])  # type: ignore[operator]
        first = torch.autograd.grad(y.sin().sum(), there, create_graph=True)
        found.append(torch.autograd.grad(first[0].square().sum(), there, materialize_grads=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_against_finite_differences() -> None:
    inputs = _inputs((1, 2, [1], [1], [1], 1), bias=True)

    def applied(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolution(x, weight, bias, [1], [1], [1], 1)

    assert torch.autograd.gradcheck(applied, inputs)
    assert torch.autograd.gradgradcheck(applied, inputs)


class Own(nn.Conv2d):
    pass


class TestLayers:
    def _is_own(self, layer: nn.Module, x: Tensor) -> bool:
        with lean_convolutions(layer):
            y = layer(x)
        assert "forward" not in vars(layer)
        return y.grad_fn is not None and y.grad_fn.name() == "_ForwardBackward"

    @pytest.mark.parametrize("mode", ["zeros", "reflect"])
    def test_plain_ones(self, mode: str) -> None:
        layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
        x = torch.randn(2, 2, 5, 5)
        assert self._is_own(layer, x)
        with lean_convolutions(layer):
            torch.testing.assert_close(layer(x), functional.conv2d(*_padded(x, mode), layer.weight, layer.bias))

    def test_left_alone(self) -> None:
        assert not self._is_own(nn.Conv2d(2, 3, 3), torch.randn(2, 5, 5))  # no batch
        assert not self._is_own(nn.Conv2d(2, 3, 3, padding="same"), torch.randn(2, 2, 5, 5))
        assert not self._is_own(Own(2, 3, 3), torch.randn(2, 2, 5, 5))
        assert not self._is_own(nn.ConvTranspose2d(2, 3, 3), torch.randn(2, 2, 5, 5))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not self._is_own(nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5))


def _padded(x: Tensor, mode: str) -> tuple[Tensor]:
    return (functional.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode),)


def _slopes(model: nn.Module, x: Tensor, *, lean: bool) -> tuple[Tensor, Tensor, int]:
    """What a search sees at its first point, and the nodes of torch's second derivative of a convolution on the way."""
    problem = Problem(
        model, lambda m, b: torch.stack([m(b).square().mean(), m(b).abs().mean()]), shared=model, tasks=("a", "b")
    )
    session = LoRA(rank=2).attach(problem, generator=torch.Generator().manual_seed(0))
    if lean:
        session.conditions = Conditions(lambda: twice_differentiable(model))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        upward, rows = ExactSharpness().slopes(Point.of(session, x, torch.ones(2))).directions()
    return upward, rows, sum("_convolution_double_backward" in event.key for event in seen.key_averages())


def test_a_search_goes_by_it_and_sees_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, stride=2)).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    upward, rows, own = _slopes(copy.deepcopy(model), x, lean=True)
    expected, expected_rows, torchs = _slopes(copy.deepcopy(model), x, lean=False)
    assert own == 0
    assert torchs > 0
    torch.testing.assert_close(upward, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rows, expected_rows, rtol=1e-10, atol=1e-12)
