"""Text files of molecules: numbers that are numbers, and errors that name the file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtl_core import InvalidInputError

__all__ = ["finite", "readable"]


def finite(word: str) -> float:
    """The number that a word is.

    Raises:
        ValueError: it is none, or not a finite one: statistics over all molecules would be NaN by a single one.

    Example:
        >>> finite(" -0.5 ")
        -0.5
    """
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"numbers must be finite, got {word.strip()!r}")
    return number


@contextmanager
def readable(file: Path, *, way_out: str = "Fetch it again.") -> Iterator[None]:
    """Name the file where it cannot be read as text.

    Args:
        file: what is read meanwhile.
        way_out: what to do then.

    Raises:
        InvalidInputError: it is no text in UTF-8, no table, or not readable at all.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{file.name} must be readable text, got: {error}. {way_out}") from None
