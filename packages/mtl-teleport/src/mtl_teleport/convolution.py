r"""Convolution whose second derivative is two convolutions and one backward pass of one.

Torch's own makes contiguous copies of activations and gradients with batch and channels exchanged. Without them the
peak of a search on the SegNet-like net of ``benchmarks/teleport.py`` fell from 152 to 127 MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_teleport.layers import computed_by

__all__ = ["convolution", "lean_convolutions"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def lean_convolutions(model: nn.Module) -> AbstractContextManager[None]:
    """For a while, a model's convolutions compute ``convolution``.

    Left alone are mixed precision, padding by name, complex numbers and input without a batch dimension.

    Args:
        model: the model.
    """
    return computed_by(model, _LAYERS, dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _own))


def _own(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The signature of ``torch.conv2d``; ``None`` where torch's own is to be called."""
    same = weight.dtype == input.dtype and (bias is None or bias.dtype == input.dtype)
    # Autocast casts inside torch's function, which is not called here.
    mixed = torch.is_autocast_enabled(input.device.type)
    plain = input.is_floating_point() and input.ndim == weight.ndim and not isinstance(padding, str)
    if not (same and plain) or mixed:
        return None
    places = weight.ndim - 2
    steps, zeros, gaps = ([s] * places if isinstance(s, int) else list(s) for s in (stride, padding, dilation))
    return convolution(input, weight, bias, steps, zeros, gaps, groups)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution as of ``torch.nn.functional``, of one to three dimensions.

    Args:
        input: ``[n, c, ...]``.
        weight: ``[k, c / groups, ...]``.
        bias: ``[k]``, or ``None``.
        stride: one number per dimension.
        padding: likewise, of zeros.
        dilation: likewise.
        groups: into how many parts the channels are taken.

    Returns:
        ``[n, k, ...]``; twice differentiable by ``input``, ``weight`` and ``bias``.
    """
    settings = (list(stride), list(padding), list(dilation), False, [0] * len(stride), groups)
    found: Tensor = _Forward.apply(input, weight, bias, settings)  # type: ignore[no-untyped-call]
    return found


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        found: Tensor = torch.ops.aten.convolution(x, weight, bias, *settings)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        found = _Backward.apply(gradients[0], x, weight, ctx.settings, wanted)  # type: ignore[no-untyped-call]
        return (*found, None)


class _Backward(torch.autograd.Function):
    r"""The first derivative of :math:`y = x * w + \beta`: by x, by the weight and by the bias, where wanted."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.settings = settings
        # None for what nobody differentiates by, so that its convolution is left out.
        ctx.set_materialize_grads(False)
        found = torch.ops.aten.convolution_backward(g, x, weight, [len(weight)], *settings, list(wanted))
        # Whatever a device's kernel gives for what was not wanted.
        return tuple(part if want else None for part, want in zip(found, wanted, strict=True))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        r"""Of :math:`F = \langle a, x'\rangle + \langle b, w'\rangle + \langle c, \beta'\rangle`.

        As :math:`\langle a, x'\rangle = \langle g, a * w\rangle` and :math:`\langle b, w'\rangle = \langle g, x *
        b\rangle`, the derivative by g is :math:`a * w + x * b + c`, and those by x and w are the first derivatives of
        :math:`a * b` at g, each where the other's place is taken.
        """
        g, x, weight = ctx.saved_tensors
        a, b, c = cotangents
        by_g = _sum_at_outputs(g, [(a, weight), (x, b)], c, ctx.settings) if ctx.needs_input_grad[0] else None
        wanted = [ctx.needs_input_grad[1] and b is not None, ctx.needs_input_grad[2] and a is not None, False]
        if not any(wanted):
            return by_g, None, None, None, None
        # Of a place that is not wanted only the shape is looked at.
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            g, x if a is None else a, weight if b is None else b, None, *ctx.settings, wanted
        )
        return by_g, by_x if wanted[0] else None, by_weight if wanted[1] else None, None, None


def _sum_at_outputs(
    like: Tensor, pairs: Sequence[tuple[Tensor | None, Tensor | None]], bias: Tensor | None, settings: tuple[Any, ...]
) -> Tensor | None:
    """The sum of the pairs' convolutions and a bias, of the shape of ``like``."""
    total: Tensor | None = None
    for x, weight in pairs:
        if x is not None and weight is not None:
            # The bias goes with the first convolution, which adds it on the way.
            part = torch.ops.aten.convolution(x, weight, bias if total is None else None, *settings)
            # In place where nothing is recorded: a tensor of the output's size less.
            total = part if total is None else total + part if torch.is_grad_enabled() else total.add_(part)
    if total is None and bias is not None:
        total = bias.view(1, -1, *[1] * (like.ndim - 2)).expand_as(like)
    return total
