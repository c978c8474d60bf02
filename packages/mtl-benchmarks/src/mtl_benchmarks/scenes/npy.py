"""Files of one array, ``.npy``: looked at before they are read, and what is wrong said in words of their own."""

from __future__ import annotations

import math
import os
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy

from mtl_core import InvalidInputError

__all__ = ["Header", "header_of", "read_npy"]

_PARSING = (ValueError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError, tokenize.TokenError)
"""What numpy raises of a header in which a byte has changed: it reads the header as a Python expression."""


@dataclass(frozen=True)
class Header:
    """What a file says of its array.

    Attributes:
        shape: of the array.
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    dtype: numpy.dtype


def header_of(path: Path) -> Header:
    """The header of a file that is as long as its header says.

    Raises:
        InvalidInputError: it is none; the text says which file, what is wrong with it and what to do.
    """
    with _opened(path) as file:
        return _checked_header(path, file)


def read_npy(path: Path) -> numpy.ndarray:
    """The array of a file.

    Raises:
        InvalidInputError: as :func:`header_of`.
    """
    with _opened(path) as file:
        _checked_header(path, file)
        file.seek(0)
        return numpy.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.is_dir():
        raise _wrong(path, "a folder of that name")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _wrong(path, f"one that cannot be read ({error.strerror or error})", "See to it") from None


def _checked_header(path: Path, file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise _wrong(path, "an empty one")
    if file.read(6) != numpy.lib.format.MAGIC_PREFIX:
        raise _wrong(path, "one that does not begin as such a file does")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 might have written
            # Whatever the version: one that is unknown is an error here, and all others are read alike.
            version = numpy.lib.format.read_magic(file)
            reader = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
            shape, _, dtype = reader[version](file)
    except _PARSING:
        raise _wrong(path, "one whose header is damaged or cut off") from None
    if dtype.hasobject or not dtype.itemsize or min(shape, default=1) < 0:
        raise _wrong(path, f"{dtype} of shape {shape}, which are no numbers", "Write it as numbers")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if size != expected:
        how = "is cut off" if size < expected else "goes on behind its array"
        raise _wrong(path, f"one that {how}: {size} bytes, where its header makes {expected}")
    return Header(tuple(shape), dtype)


def _wrong(path: Path, got: str, way_out: str = "Fetch or make it again") -> InvalidInputError:
    return InvalidInputError(f"{path} must be a whole .npy file, got {got}. {way_out}.")
