r"""Batch normalisation whose second derivative takes two tensors of the input's size beside its results.

Torch's own takes nine at once, more than all else that a second differentiation of a convolutional net holds at its
peak: on the SegNet-like net of ``benchmarks/teleport.py`` 27 of 91 MiB.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_teleport.layers import computed_by

__all__ = ["batch_norm", "lean_batch_norm"]


_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def lean_batch_norm(model: nn.Module) -> AbstractContextManager[None]:
    """For a while, a model's batch norm layers that use a batch's own statistics compute ``batch_norm`` of this module.

    With running statistics torch's own is left in place: its second derivative is elementwise there. Layers of a class
    of the user's are left alone, too.

    Args:
        model: the model.
    """
    return computed_by(model, _LAYERS, {functional.batch_norm: _own})


def _own(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """The signature of ``functional.batch_norm``; ``None`` where torch's own is to be called."""
    affine = (weight is None) == (bias is None)
    same = all(t is None or t.dtype == input.dtype for t in (weight, bias, running_mean))
    # Fewer than two numbers per channel have no variance; torch's own function says so.
    several = input.ndim >= 2 and input.numel() > input.shape[1]
    if not (training and affine and same and several and input.is_floating_point()):
        return None
    return batch_norm(input, running_mean, running_var, weight, bias, momentum=momentum, eps=eps)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    momentum: float,
    eps: float,
) -> Tensor:
    r"""Normalisation by the batch's own statistics, :math:`y = \gamma \hat x + \beta`.

    .. math:: \hat x = s\,(x - \mu), \qquad s = (\mathrm{var}(x) + \epsilon)^{-1/2}

    Args:
        input: ``[n, c, ...]``.
        running_mean: ``[c]``, moved towards the batch's statistics in place, or ``None``.
        running_var: likewise.
        weight: :math:`\gamma`, ``[c]``, or ``None``.
        bias: :math:`\beta`, ``[c]``, where there is a weight.
        momentum: weight of the batch's statistics in the running ones.
        eps: :math:`\epsilon`.

    Returns:
        of the shape of ``input``; twice differentiable by ``input``, ``weight`` and ``bias``.
    """
    found: Tensor = _Forward.apply(input, weight, bias, running_mean, running_var, momentum, eps)  # type: ignore[no-untyped-call]
    return found


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        # The batch's mean and inverse deviation come with it: two numbers per channel to keep, where x̂ would be a
        # tensor of x's size.
        found, mean, scale = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        found = _Backward.apply(gradients[0], x, weight, mean, scale, ctx.eps)  # type: ignore[no-untyped-call]
        return (found[0], *(found[1:] if weight is not None else (None, None)), None, None, None, None)


class _Backward(torch.autograd.Function):
    r"""The first derivative, with means over all dimensions but that of the channels, and N numbers per channel.

    :math:`x' = \gamma s (g - \bar g - \hat x\,\overline{g\hat x})`, :math:`\gamma' = N\,\overline{g\hat x}`,
    :math:`\beta' = N \bar g`.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(g, x, weight, mean, scale)
        # None for what nobody differentiates by; zeros of the input's size would be made and multiplied.
        ctx.set_materialize_grads(False)
        wanted = [True, weight is not None, weight is not None]
        found = torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, scale, True, eps, wanted)
        return tuple(found) if weight is not None else (found[0],)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, scale = ctx.saved_tensors
        a, b, c = (*cotangents, None, None)[:3]
        return (*_second(g, x, weight, mean, scale, a, b, c), None, None, None)


def _second(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    c: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Derivatives of :math:`F = \langle a, x'\rangle + \langle b, \gamma'\rangle + \langle c, \beta'\rangle`.

    Per channel :math:`F = N\gamma s(\overline{ag} - \bar a\bar g - pq) + N b q + N c \bar g` with :math:`p =
    \overline{a\hat x}`, :math:`q = \overline{g\hat x}`. With :math:`\partial s/\partial x = -s^2\hat x/N` and
    :math:`\partial\hat x_j/\partial x_i = s(\delta_{ij} - 1/N - \hat x_i\hat x_j/N)` each derivative is one combination
    of a, g, :math:`\hat x` and 1 with coefficients per channel; :math:`\alpha = -\gamma s q`, :math:`\beta = b - \gamma
    s p`:

    .. math::
        \partial F/\partial g &= \gamma s (a - \bar a - p\hat x) + b\hat x + c \\
        \partial F/\partial x &= s\alpha a + s\beta g - s(\alpha\bar a + \beta\bar g)
            - \bigl(s(\alpha p + \beta q) + \gamma s^2(\overline{ag} - \bar a\bar g - pq)\bigr)\hat x \\
        \partial F/\partial\gamma &= N s(\overline{ag} - \bar a\bar g - pq)
    """
    shape = [1, -1, *[1] * (x.ndim - 2)]
    others = [d for d in range(x.ndim) if d != 1]
    count = x.numel() // x.shape[1]

    def wide(per_channel: Tensor) -> Tensor:
        return per_channel.view(shape)

    def average(tensor: Tensor) -> Tensor:
        return tensor.mean(others)

    zero = torch.zeros_like(scale)
    gamma = torch.ones_like(scale) if weight is None else weight
    b, c = zero if b is None else b, zero if c is None else c
    # The first of the two tensors of the input's size; `room` is the second, and takes each product in turn.
    normal = (x - wide(mean)).mul_(wide(scale))
    room = torch.empty_like(normal)
    g_mean, q = average(g), average(torch.mul(g, normal, out=room))
    a_mean, p, both = (
        (zero, zero, zero)
        if a is None
        else (
            average(a),
            average(torch.mul(a, normal, out=room)),
            average(torch.mul(a, g, out=room)),
        )
    )
    del room
    spread = both - a_mean * g_mean - p * q
    alpha, beta = -gamma * scale * q, b - gamma * scale * p
    # Before the next line, which writes over x̂.
    by_g = normal * wide(b - gamma * scale * p)
    by_x = normal.mul_(wide(-scale * (alpha * p + beta * q) - gamma * scale.square() * spread))
    if a is not None:
        by_g.addcmul_(a, wide(gamma * scale))
        by_x.addcmul_(a, wide(scale * alpha))
    by_g.add_(wide(c - gamma * scale * a_mean))
    by_x.addcmul_(g, wide(scale * beta)).sub_(wide(scale * (alpha * a_mean + beta * g_mean)))
    return by_g, by_x, None if weight is None else count * scale * spread
