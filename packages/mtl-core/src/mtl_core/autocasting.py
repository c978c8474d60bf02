"""Autocast is for the user's losses, and not for what is computed from their gradients.

A region around a whole step is what many loops have. Within it torch would compute Gramians, weighted sums and
searches in the region's low precision as well, since they are matrix products like any other, and it would go on using
the copies of parameters that it made before they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["full_precision", "in_full_precision", "in_the_users_precision"]

P = ParamSpec("P")
T = TypeVar("T")

_DEVICES = ("cpu", "cuda", "xpu", "mps")
_suspended: ContextVar[tuple[tuple[str, torch.dtype], ...]] = ContextVar("_suspended", default=())
"""Device types and dtypes of the user's region, while it is switched off."""


def _regions() -> tuple[tuple[str, torch.dtype], ...]:
    if not torch._C._is_any_autocast_enabled():
        return ()
    return tuple((name, torch.get_autocast_dtype(name)) for name in _DEVICES if torch.is_autocast_enabled(name))


@contextmanager
def in_full_precision() -> Iterator[None]:
    """Switch the user's autocast region off; ``in_the_users_precision`` switches it on again within.

    Nothing is done where there is no region.
    """
    regions = _regions()
    if not regions:
        yield
        return
    token = _suspended.set(regions)
    try:
        with ExitStack() as stack:
            for device, _ in regions:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        _suspended.reset(token)
        # What autocast keeps of the parameters was made before they changed, or changed back: a forward pass of the
        # user's in the same region is to see them as they are.
        torch.clear_autocast_cache()


@contextmanager
def in_the_users_precision() -> Iterator[None]:
    """Switch the region on again that ``in_full_precision`` has switched off, for an evaluation of the user's losses.

    Copies of parameters that torch keeps in a region are forgotten first: a step evaluates before its update and after
    it, with a graph and without, and a kept copy would show old values or have no way back to its parameter. Seen in a
    region around several steps: the losses of the first, again and again.
    """
    torch.clear_autocast_cache()
    regions = _suspended.get()
    if not regions:
        yield
        return
    token = _suspended.set(())
    cached = torch.is_autocast_cache_enabled()
    try:
        with ExitStack() as stack:
            for device, dtype in regions:
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=cached))
            yield
    finally:
        _suspended.reset(token)


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """A function of gradients, weights or losses that is the same within an autocast region as outside of one."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        # One question for all devices, which torch has no public name for: four would cost a microsecond at each of the
        # several such functions that a small method calls.
        if not torch._C._is_any_autocast_enabled():
            return function(*args, **kwargs)
        with in_full_precision():
            return function(*args, **kwargs)

    return wrapped
