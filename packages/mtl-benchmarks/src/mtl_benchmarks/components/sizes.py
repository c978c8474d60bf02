"""How large what options ask for may be: looked at before memory is taken."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtl_benchmarks.components.options import Choice
from mtl_core import InvalidInputError, InvalidParameterError

__all__ = ["fitting", "network_within_memory", "refuse_huge", "within_memory"]

_MOST = 10**8
"""No whole number of an option is larger, but seeds: the largest data sets of the field have half as many samples."""
_REFUSED = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes|out of memory|[Oo]verflow")
"""What torch says where an allocation is refused, or its size is no number of 64 bits any more."""


def refuse_huge(options: Mapping[str, Any]) -> None:
    """Refuse whole numbers of a size that nothing has, in the options of a benchmark and of its parts.

    Args:
        options: resolved; a part is a ``Choice`` with options of its own.

    Raises:
        InvalidParameterError: there is one.
    """
    for name, value in options.items():
        if isinstance(value, Choice):
            refuse_huge(value.options)
        if type(value) is int and abs(value) > _MOST and not name.endswith("seed"):
            raise InvalidParameterError(f"`{name}` must be at most {_MOST:,}, got {value}.")


def fitting(name: str, value: int, *, bytes_each: int) -> int:
    """A number of things that fit into this machine's memory all together.

    Args:
        name: of the option, for the error.
        value: how many.
        bytes_each: that one of them takes.

    Raises:
        InvalidParameterError: they do not.
    """
    if value * bytes_each > _memory():
        raise InvalidParameterError(
            f"`{name}` must be at most {_memory() // bytes_each:,} on this machine, got {value}, which takes "
            f"{_in_words(value * bytes_each)} of {_in_words(_memory())} of memory."
        )
    return value


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Let an allocation that the system has refused, of which nothing was taken, be said in one line.

    Args:
        what: is made meanwhile, with whose options.

    Raises:
        InvalidInputError: one was refused.
    """
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        found = _REFUSED.search(str(error))
        if found is None and isinstance(error, RuntimeError):
            raise
        size = _in_words(int(found[1])) + " at once" if found is not None and found[1] else "more than there is"
        raise InvalidInputError(
            f"{what} must fit into this machine's memory, got options that ask for {size}. Choose smaller ones."
        ) from error


def network_within_memory(what: str, build: Callable[[], nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse a network that is larger than the memory of this machine, before any of it is taken.

    Layers that fit one by one are filled one by one, for minutes, until the system ends the process or the first one
    is asked for that it refuses.

    Args:
        what: is built, with whose options.
        build: makes it; called once more, without its memory, where an option is large enough to matter.
        options: of what is built; a part is a ``Choice`` with options of its own.

    Raises:
        InvalidInputError: it does not fit.
    """
    if _largest(options) < _SMALL:
        return
    with within_memory(what):
        try:
            with torch.device("meta"):
                model = build()
        except Exception as error:
            if isinstance(error, RuntimeError) and _REFUSED.search(str(error)) is not None:
                raise
            return  # what cannot be built so is built as it is, and says itself what is wrong with it
    held = {id(each): each.nbytes for each in (*model.parameters(), *model.buffers())}
    if sum(held.values()) > _memory():
        raise InvalidInputError(
            f"{what} must fit into this machine's memory, got options that ask for {_in_words(sum(held.values()))} of "
            f"{_in_words(_memory())}. Choose smaller ones."
        )


_SMALL = 1000
"""Options below it make no network that fills a memory."""


def _largest(options: Mapping[str, Any]) -> int:
    sizes = [_largest(value.options) for value in options.values() if isinstance(value, Choice)]
    sizes += [value for name, value in options.items() if type(value) is int and not name.endswith("seed")]
    return max(sizes, default=0)


@cache
def _memory() -> int:
    """Bytes of memory that this process may have."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every platform
        return 2**48
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return min(found, int(limit)) if limit.isdecimal() else found


def _in_words(size: int) -> str:
    """Bytes as a person reads them.

    Example:
        >>> _in_words(72 * 10**12), _in_words(1500)
        ('72.0 TB', '1.5 kB')
    """
    number, units = float(size), ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.1f} {units[0]}"
