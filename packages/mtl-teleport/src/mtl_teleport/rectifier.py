r"""The rectifier, whose second derivative is of the incoming gradient alone.

Torch's own also returns the derivative by the activations, a tensor of zeros per layer, which then waits for the rest
of the graph: 7 of 77 MiB on the SegNet-like net of ``benchmarks/teleport.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_teleport.layers import computed_by

__all__ = ["lean_rectifiers", "rectified"]


def lean_rectifiers(model: nn.Module) -> AbstractContextManager[None]:
    """For a while, a model's rectifiers of many activations compute ``rectified``.

    Those that write over their input are left alone.

    Args:
        model: the model.
    """
    return computed_by(model, (nn.ReLU,), {functional.relu: _own})


_MANY = 1 << 17
"""Activations from which on it pays: on an MLP of half as many per layer a search took 5 % more time, for 0.5 MiB."""


def _own(input: Tensor, inplace: bool = False) -> Tensor | None:
    return None if inplace or input.numel() < _MANY else rectified(input)


def rectified(x: Tensor) -> Tensor:
    r""":math:`\max(x, 0)`.

    Args:
        x: of any shape.

    Returns:
        of the same shape; twice differentiable, with no second derivative by ``x``.
    """
    found: Tensor = _Forward.apply(x)  # type: ignore[no-untyped-call]
    return found


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = torch.relu(x)
        # The output, which the next layer keeps anyway; it is positive where x is.
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        found: Tensor = _Backward.apply(gradients[0], y)  # type: ignore[no-untyped-call]
        return found


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        found: Tensor = torch.ops.aten.threshold_backward(g, y, 0)
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(cotangents[0], y, 0), None
