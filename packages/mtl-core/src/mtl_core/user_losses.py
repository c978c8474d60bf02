"""Calling the user's losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from mtl_core.autocasting import in_the_users_precision

__all__ = ["called"]


def called(parameters: Iterable[Tensor], function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that evaluates the losses; they find no gradients in ``.grad`` and leave none.

    Losses may call ``backward()`` themselves, for an attack on their inputs, say. The step's gradients would be added
    to what that leaves, and an evaluation that clears gradients would clear those of earlier micro-batches.

    Args:
        parameters: the model's trainable parameters.
        function: the function, called in the precision of the user's autocast region.
        arguments: what it takes.
    """
    # At another point of the model there may be tensors of a graph in the places of its parameters.
    held = [(p, p.grad) for p in parameters if p.is_leaf]
    for parameter, gradient in held:
        if gradient is not None:
            parameter.grad = None
    try:
        with in_the_users_precision():
            return function(*arguments)
    finally:
        for parameter, gradient in held:
            if parameter.grad is not gradient:
                parameter.grad = gradient
