"""The optimiser that makes the update, inside whatever wraps it."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from mtl_core.errors import InvalidInputError

__all__ = ["inner_optimizer"]


def inner_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimiser within a wrapper, whose state and hooks are those of the update.

    A wrapper is an object, itself an ``Optimizer`` or not, that holds an optimiser in an attribute and hands its step
    on, such as Accelerate's. Hooks on the wrapper may never be called, or not exist, and its ``state`` may be a copy.

    Args:
        optimizer: an optimiser, wrapped any number of times, or not at all.

    Raises:
        InvalidInputError: it is no optimiser and holds none, or holds several, of which any might make the update.

    Example:
        >>> import torch
        >>> class Wrapper:
        ...     def __init__(self, optimizer):
        ...         self.optimizer = optimizer
        >>> adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
        >>> inner_optimizer(Wrapper(adam)) is adam, inner_optimizer(adam) is adam
        (True, True)
    """
    seen: list[Any] = []
    found = optimizer
    while all(found is not other for other in seen):
        seen.append(found)
        inside = _held(found)
        if len(inside) > 1:
            raise InvalidInputError(
                f"`optimizer` must hold one optimiser at most, got {type(found).__name__} with {len(inside)}. Give the "
                "one that updates the shared parameters."
            )
        if not inside:
            break
        found = inside[0]
    if not isinstance(found, Optimizer):
        raise InvalidInputError(
            f"`optimizer` must be a torch.optim.Optimizer, or hold one in an attribute, got {type(optimizer).__name__}."
        )
    return found


def _held(found: Any) -> list[Any]:
    """The optimisers among an object's attributes, each once."""
    attributes = vars(found) if hasattr(found, "__dict__") else {}
    inside: dict[int, Any] = {id(v): v for v in attributes.values() if isinstance(v, Optimizer) and v is not found}
    return list(inside.values())
