"""Weights are float64, gradients often are not: where their products leave the gradients' dtype."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mtl_core.collecting.flat import flat_size
from mtl_core.distributed import local_part

__all__ = ["ORDINARY", "first_unfit", "fits", "is_ordinary", "largest_of", "times"]


@cache
def largest_of(dtype: torch.dtype) -> float:
    """The largest finite number of a dtype."""
    largest: float = torch.finfo(dtype).max
    return largest


def is_ordinary(weights: Sequence[float], parameters: Sequence[Tensor]) -> bool:
    """Whether gradients of ordinary size, times such weights, need not be looked at to be known finite."""
    size = sum(map(abs, weights))
    # Half precision ends at 65,504, which a gradient of ordinary size may be near to.
    return size <= 1.0 or (size <= ORDINARY and all(largest_of(d) > ORDINARY for d in {p.dtype for p in parameters}))


ORDINARY = 1e18
"""Times this, a gradient of ordinary size stays finite in every dtype that is wider than half precision."""


def fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether real values are finite, also once they are of a dtype; reads them."""
    if not values.numel():
        return True
    # A twentieth of the time of isfinite, on the CPU. NaN is handed on, and compares false.
    low, high = torch.aminmax(values)
    limit = largest_of(dtype)
    return -limit <= float(low) and float(high) <= limit


def first_unfit(parameters: Sequence[Tensor], vector: Tensor) -> torch.dtype | None:
    """The dtype of the first parameter whose part of an update ``[d]`` is not finite in it; ``None`` where all fit."""
    if fits(vector, torch.float16):
        return None
    start = 0
    for parameter in parameters:
        size = flat_size(local_part(parameter))
        part = vector[start : start + size]
        start += size
        if not fits(part, parameter.dtype.to_real()):
            return parameter.dtype
    return None


def times(gradient: Tensor, factor: float | Tensor) -> Tensor:
    """A gradient times a number, which the gradient's dtype may be too narrow for, or times a tensor of one."""
    if isinstance(factor, Tensor):
        return gradient * factor.to(gradient.dtype)
    if abs(factor) <= ORDINARY:
        return gradient * factor
    wide = torch.promote_types(gradient.dtype, torch.float64)
    return (gradient.to(wide) * factor).to(gradient.dtype)
