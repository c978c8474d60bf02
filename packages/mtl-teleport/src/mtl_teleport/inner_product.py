"""Inner products in float64 that never copy a whole parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["inner_product", "length_of"]

_BLOCK = 2**16  # entries: one layer of 512 × 512, widened whole to float64, was the peak of a teleport on the MLP


def inner_product(first: Tensor, second: Tensor | None = None, *, less: Tensor | None = None) -> Tensor:
    r"""The sum of products of two tensors' entries, accumulated in float64.

    Args:
        first: of any shape and floating dtype.
        second: of the same shape; ``None`` for ``first`` itself, whatever is taken from it.
        less: what is first taken from ``first``, if anything.

    Returns:
        a scalar, float64, detached.
    """
    a, b, c = (None if t is None else t.detach().reshape(-1) for t in (first, second, less))
    assert a is not None
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for at in range(0, a.numel(), _BLOCK):
        # In float64, since an inner product may be small beside its terms: its sign decides whether the optimiser's
        # memory is kept. The difference too: in half precision it has the rounding of the larger of the two.
        wide = a[at : at + _BLOCK].to(torch.float64)
        if c is not None:
            wide = wide - c[at : at + _BLOCK].to(torch.float64)
        total += torch.dot(wide, wide if b is None else b[at : at + _BLOCK].to(torch.float64))
    return total


def length_of(tensors: Mapping[str, Tensor], *, start: Mapping[str, Tensor] | None = None) -> float:
    """The norm of all tensors together, or of their difference from where they started."""
    squares = (inner_product(t, less=None if start is None else start[name]) for name, t in tensors.items())
    return math.sqrt(sum(map(float, squares)))
