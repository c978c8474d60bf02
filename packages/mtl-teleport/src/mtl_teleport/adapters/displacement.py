"""What a displacement must be: adapters may be written by hand, and one of another shape would be broadcast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtl_core import InvalidInputError

__all__ = ["check_displacement"]


def check_displacement(adapter: object, shared: Mapping[str, Tensor], delta: Any) -> dict[str, Tensor]:
    """Return a displacement, detached, if every entry fits its parameter.

    Args:
        adapter: what gave it, for the text.
        shared: the shared parameters by name.
        delta: what ``delta()`` of the session returned.

    Raises:
        InvalidInputError: naming the adapter and the entry.
    """
    kind = type(adapter).__name__
    if not isinstance(delta, Mapping):
        raise InvalidInputError(
            "`delta()` of the session must give displacements by the names of `shared`, got "
            f"{type(delta).__name__} from {kind}."
        )
    for name, step in delta.items():
        wrong = _wrong(name, step, shared)
        if wrong:
            raise InvalidInputError(
                f"`delta()` of the session must give for {name!r} a displacement of that shared parameter: real, "
                f"dense, of its shape and on its device; got {wrong} from {kind}."
            )
    return {name: step.detach() for name, step in delta.items()}


def _wrong(name: str, step: Any, shared: Mapping[str, Tensor]) -> str:
    if name not in shared:
        return f"a name that is none of {', '.join(shared)}"
    if not isinstance(step, Tensor):
        return type(step).__name__
    if not step.is_floating_point():
        return str(step.dtype)
    if step.layout != torch.strided or step.device != shared[name].device:
        return f"a {str(step.layout).removeprefix('torch.')} tensor on {step.device}"
    return "" if step.shape == shared[name].shape else f"{tuple(step.shape)} for {tuple(shared[name].shape)}"
