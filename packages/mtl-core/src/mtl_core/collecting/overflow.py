"""Weights are float64, gradients often are not: where their products leave the gradients' dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_core.collecting.backward import is_on_host
from mtl_core.errors import InvalidInputError

__all__ = ["refuse_overflow"]

_SAFE = {torch.bfloat16: 1e18, torch.float32: 1e18, torch.float64: 1e150}
"""Weights by which a gradient of ordinary size stays finite; where one is larger, the products are looked at."""


def refuse_overflow(
    weights: Tensor, parameters: Sequence[Tensor], found: Sequence[Tensor | None], problem: str
) -> None:
    """Make sure that weights did not make infinities of finite gradients, where they are so large that they might.

    Args:
        weights: ``[m]``; on a device they are not looked at, which would mean waiting for it.
        parameters: whose gradients they are.
        found: weighted gradients, real.
        problem: what must be otherwise if they did, for the message.

    Raises:
        InvalidInputError: they did.
    """
    if not is_on_host(weights):
        return
    largest = max(map(abs, weights.tolist()))
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is None or largest <= _SAFE.get(parameter.dtype.to_real(), 1.0):
            continue
        if not bool(torch.isfinite(gradient).all()):
            raise InvalidInputError(
                f"{problem}: gradients times the weights {weights.tolist()} leave {parameter.dtype}. Nothing was "
                "updated. Multiply the losses by a constant, or keep the parameters in a wider dtype."
            )
