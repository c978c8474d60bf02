"""Settings: numbers, names, choices, generators."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtl_core.errors import InvalidInputError, InvalidParameterError

__all__ = [
    "boolean",
    "finite",
    "generator",
    "in_interval",
    "instance",
    "names",
    "non_negative",
    "one_of",
    "positive",
    "positive_int",
    "seed",
]

T = TypeVar("T")


def instance(name: str, value: Any) -> Any:
    """Return ``value`` if it is not a class, which is easily given where one of its instances is meant.

    Raises:
        InvalidInputError: otherwise.
    """
    if isinstance(value, type):
        raise InvalidInputError(
            f"`{name}` must be an instance, got the class {value.__name__}. Give {value.__name__}()."
        )
    return value


def boolean(name: str, value: bool) -> bool:
    """Return ``value`` if it is true or false, and no other thing that would count as one of them.

    Raises:
        InvalidParameterError: otherwise.
    """
    if value is not True and value is not False:
        raise InvalidParameterError(f"`{name}` must be True or False, got {value!r}.")
    return value


def generator(name: str, value: torch.Generator | None) -> torch.Generator:
    """Return ``value`` if it is a generator of random numbers, and a new one if it is ``None``.

    Raises:
        InvalidParameterError: otherwise.
    """
    if value is not None and not isinstance(value, torch.Generator):
        raise InvalidParameterError(
            f"`{name}` must be a torch.Generator, got {type(value).__name__}. Give torch.Generator().manual_seed(seed)."
        )
    return torch.Generator() if value is None else value


def names(name: str, value: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return ``value`` as a tuple if it is a sequence of distinct names, or ``None``.

    Raises:
        InvalidParameterError: otherwise.
    """
    if value is None:
        return None
    known = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor))
    # An array without dimensions says that it can be iterated over.
    found = tuple(value) if known and not (isinstance(value, np.ndarray) and value.ndim == 0) else ()
    if not found or not all(isinstance(entry, str) for entry in found) or len(set(found)) != len(found):
        raise InvalidParameterError(f"`{name}` must be distinct names in a sequence, got {value!r}.")
    return found


def finite(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number.

    Raises:
        InvalidParameterError: otherwise.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidParameterError(f"`{name}` must be a number, got {value!r}.") from None
    if not math.isfinite(number):
        raise InvalidParameterError(f"`{name}` must be finite, got {value!r}.")
    return number


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number above zero.

    Raises:
        InvalidParameterError: otherwise.
    """
    number = finite(name, value)
    if number <= 0:
        raise InvalidParameterError(f"`{name}` must be positive, got {value!r}.")
    return number


def non_negative(name: str, value: float) -> float:
    """Return ``value`` if it is a finite number of zero or more.

    Raises:
        InvalidParameterError: otherwise.
    """
    number = finite(name, value)
    if number < 0:
        raise InvalidParameterError(f"`{name}` must not be negative, got {value!r}.")
    return number


def positive_int(name: str, value: int) -> int:
    """Return ``value`` if it is a whole number of one or more.

    Raises:
        InvalidParameterError: otherwise.
    """
    if type(value) is not int or value < 1:
        raise InvalidParameterError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
    return value


def seed(name: str, value: Any) -> int:
    """Return ``value`` if it is a seed that all generators tell from every other one: a whole number of 32 bits.

    torch's generator on the CPU reads the lowest 32 bits of a seed and no more, so that 0 and 2**32 are one run, and
    −1 and 2**32 − 1 another.

    Raises:
        InvalidParameterError: otherwise.

    Example:
        >>> seed("seed", 4294967296)
        Traceback (most recent call last):
        mtl_core.errors.InvalidParameterError: `seed` must be a whole number from 0 to 4294967295, got 4294967296. \
Generators read no more bits: it would draw what another seed draws.
    """
    if type(value) is int and 0 <= value < 2**32:
        return value
    why = " Generators read no more bits: it would draw what another seed draws." if type(value) is int else ""
    raise InvalidParameterError(f"`{name}` must be a whole number from 0 to {2**32 - 1}, got {value!r}.{why}")


def in_interval(
    name: str, value: float, low: float, high: float, ends: Literal["[]", "[)", "(]", "()"] = "[]"
) -> float:
    """Return ``value`` if it lies in an interval, with the ends that ``ends`` shows.

    Args:
        name: of the setting, for the message.
        value: what was given.
        low: the lower end.
        high: the upper end.
        ends: which ends belong to the interval, as brackets.

    Raises:
        InvalidParameterError: otherwise.
    """
    number = finite(name, value)
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if not (above and below):
        raise InvalidParameterError(f"`{name}` must lie in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value!r}.")
    return number


def one_of(name: str, value: T, options: Sequence[T]) -> T:
    """Return ``value`` if it is one of ``options``.

    Args:
        name: of the setting, for the message.
        value: what was given.
        options: what it may be.

    Raises:
        InvalidParameterError: otherwise.
    """
    # Of an array, `in` would ask which of its entries are equal.
    if not isinstance(value, Hashable) or value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise InvalidParameterError(f"`{name}` must be one of {listed}, got {value!r}.")
    return value
