"""What a teleporting method is given, checked where it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor

from mtl_core import InvalidInputError, InvalidParameterError, checks
from mtl_core.extension import FixedWeights, check_method
from mtl_teleport.adapters.protocol import Adapter

__all__ = ["adapter", "probe_batches", "seed", "whole", "wrapped_method"]


def wrapped_method(method: Any) -> Any:
    """Return what is to be wrapped if it is a method of some kind, the plain sum of the losses for ``None``.

    Raises:
        InvalidInputError: it is not.
    """
    return FixedWeights() if method is None else check_method(method)


def adapter(value: Any) -> Adapter:
    """Return an adapter.

    Raises:
        InvalidInputError: it is none.
    """
    checks.instance("adapter", value)
    if not isinstance(value, Adapter):
        raise InvalidInputError(
            f"`adapter` must have attach(problem, batch=, generator=), got {type(value).__name__}. Give "
            "mtl_teleport.LoRA(), or PeftAdapter(config) for a configuration of the PEFT library."
        )
    return value


def probe_batches(value: Any) -> Iterable[Any] | None:
    """Return batches that can be iterated at every teleport anew.

    Raises:
        InvalidInputError: they cannot.
    """
    if value is None:
        return None
    way_out = "Give a list of batches or a loader."
    if isinstance(value, Iterator):
        raise InvalidInputError(
            f"`probe_batches` must be iterable again at every teleport, got {type(value).__name__}, which is used up "
            f"by the first. {way_out}"
        )
    if isinstance(value, Tensor | Mapping | str) or not (isinstance(value, Iterable) or hasattr(value, "__getitem__")):
        raise InvalidInputError(
            f"`probe_batches` must be a collection of batches, got {type(value).__name__}. {way_out}"
        )
    if isinstance(value, Sized) and len(value) == 0:
        raise InvalidInputError(f"`probe_batches` must hold at least one batch, got none. {way_out}")
    batches: Iterable[Any] = value
    return batches


def seed(value: Any) -> int:
    """Return a seed.

    Raises:
        InvalidParameterError: it is no whole number, or negative.
    """
    return whole("seed", value, 0)


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number that is large enough.

    Raises:
        InvalidParameterError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidParameterError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
    return value
