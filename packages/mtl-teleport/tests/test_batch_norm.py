from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_core import Problem
from mtl_teleport import LoRA
from mtl_teleport.batch_norm import batch_norm, lean_batch_norm
from mtl_teleport.conditions import Conditions
from mtl_teleport.double_backward import twice_differentiable
from mtl_teleport.sharpness import ExactSharpness, Point

SHAPES = [(5, 3), (4, 3, 6), (4, 3, 5, 2), (2, 3, 4, 3, 2)]


def _derivatives(shape: tuple[int, ...], *, affine: bool, own: bool, dtype: torch.dtype) -> list[Tensor]:
    """Values, running statistics, first derivatives and those of their norm."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=dtype, requires_grad=True) if affine else None for _ in range(2))
    factor = torch.randn(shape, dtype=dtype)
    mean, var = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    if own:
        y = batch_norm(x, mean, var, weight, bias, momentum=0.1, eps=1e-2)
    else:
        y = functional.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-2)
    inputs = [t for t in (x, weight, bias) if t is not None]
    first = torch.autograd.grad((torch.sin(y) * factor).sum(), inputs, create_graph=True)
    size = torch.stack([g.square().sum() for g in first]).sum().sqrt()
    return [t.detach() for t in (y, mean, var, *first, *torch.autograd.grad(size, inputs))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_as_torchs_own(shape: tuple[int, ...], affine: bool, dtype: torch.dtype) -> None:
    found = _derivatives(shape, affine=affine, own=True, dtype=dtype)
    expected = _derivatives(shape, affine=affine, own=False, dtype=dtype)
    tol = 1e-12 if dtype == torch.float64 else 2e-5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tol, atol=tol)


def test_against_finite_differences() -> None:
    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x, None, None, weight, bias, momentum=0.1, eps=1e-2)

    torch.manual_seed(0)
    inputs = tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3, 2), (3,), (3,)))
    assert torch.autograd.gradcheck(normalised, inputs)
    assert torch.autograd.gradgradcheck(normalised, inputs)


class Own(nn.BatchNorm1d):
    pass


class TestLayers:
    def _is_own(self, layer: nn.Module, x: Tensor) -> bool:
        with lean_batch_norm(layer):
            y = layer(x)
        assert y.grad_fn is not None
        assert "forward" not in vars(layer)
        return y.grad_fn.name() == "_ForwardBackward"

    def test_with_the_batch_statistics(self) -> None:
        for layer in (nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, momentum=None)):
            assert self._is_own(layer, torch.randn(4, 3, requires_grad=True))
            assert layer.num_batches_tracked is not None
            assert int(layer.num_batches_tracked) == 1

    def test_with_running_statistics(self) -> None:
        assert not self._is_own(nn.BatchNorm1d(3).eval(), torch.randn(4, 3, requires_grad=True))

    def test_without_running_statistics_in_evaluation_mode(self) -> None:
        layer = nn.BatchNorm2d(3, track_running_stats=False).eval()
        assert self._is_own(layer, torch.randn(4, 3, 2, 2, requires_grad=True))

    def test_in_mixed_precision(self) -> None:
        assert not self._is_own(nn.BatchNorm1d(3), torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True))

    def test_of_a_class_of_the_users(self) -> None:
        assert not self._is_own(Own(3), torch.randn(4, 3, requires_grad=True))

    def test_one_number_per_channel_is_refused_in_torchs_words(self) -> None:
        layer = nn.BatchNorm1d(3)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            self._is_own(layer, torch.randn(1, 3, requires_grad=True))
        assert "forward" not in vars(layer)

    def test_blocks_within_blocks(self) -> None:
        layer = nn.BatchNorm1d(3)
        with lean_batch_norm(layer):
            with lean_batch_norm(layer):
                pass
            assert layer(torch.randn(4, 3)).grad_fn.name() == "_ForwardBackward"


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that the results of operations took at once, as long as someone held on to them."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.most = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.most = max(self.most, self.live)
        return found

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _slopes_memory(model: nn.Module, x: Tensor, *, lean: bool) -> int:
    problem = Problem(
        model, lambda m, b: torch.stack([m(b).square().mean(), m(b).abs().mean()]), shared=model, tasks=("a", "b")
    )
    session = LoRA(rank=2).attach(problem, generator=torch.Generator().manual_seed(0))
    if lean:
        session.conditions = Conditions(lambda: twice_differentiable(model))
    with Largest() as seen:
        slopes = ExactSharpness().slopes(Point.of(session, x, torch.ones(2)))
        slopes.directions()
    return seen.most


def test_a_second_differentiation_holds_less() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    x = torch.randn(4, 3, 32, 32)
    plain = _slopes_memory(copy.deepcopy(model), x, lean=False)
    assert _slopes_memory(copy.deepcopy(model), x, lean=True) < 0.8 * plain
