"""How many threads numpy's and scipy's BLAS may use, whatever the process has set for them."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["NUMPY", "SCIPY", "BlasThreads", "Pool", "blas_pools"]

NUMPY = "numpy.linalg._umath_linalg"
SCIPY = "scipy.linalg._flapack"
"""Compiled modules through which the BLAS of numpy and that of scipy are found: their wheels bring one each."""
NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
"""How OpenBLAS's functions are called in the wheels of numpy 2, of scipy, of numpy 1, and in a system's library."""


class Pool(NamedTuple):
    """The threads of one OpenBLAS.

    Attributes:
        threads: how many it may use.
        limit: set that.
    """

    threads: Callable[[], int]
    limit: Callable[[int], None]


def blas_pools(modules: Sequence[str] = (NUMPY, SCIPY)) -> tuple[Pool, ...]:
    """The thread pools of the BLAS that modules are linked to; those that are not OpenBLAS are left out."""
    found: dict[int | None, Pool] = {}
    for module in modules:
        try:
            # PyDLL keeps the interpreter's lock, which takes less time than giving it up for a few instructions.
            library = ctypes.PyDLL(importlib.import_module(module).__file__)
        except (ImportError, OSError, TypeError):
            continue
        for name in NAMES:
            if not hasattr(library, name.format("set_num_threads")):
                continue
            count, limit = library[name.format("get_num_threads")], library[name.format("set_num_threads")]
            count.argtypes, count.restype = [], ctypes.c_int
            limit.argtypes, limit.restype = [ctypes.c_int], None
            # Where both are linked to the system's OpenBLAS, it is one pool.
            found.setdefault(ctypes.cast(limit, ctypes.c_void_p).value, Pool(count, limit))
            break
    return tuple(found.values())


class BlasThreads:
    """A context in which BLAS uses so many threads at most; a pool that is smaller already is left as it is.

    OpenBLAS hands parts of an eigen-decomposition to its threads from about 30 rows on, and waits for them. Where other
    processes hold the cores, that wait is a turn of the scheduler: a solve of 0.7 ms took 15. The context may be
    entered again within itself and in several threads; the last one to leave restores what the first one found. It
    takes a few microseconds.

    Args:
        most: asked when the context is entered.
        modules: those whose BLAS is meant, ``NUMPY``, ``SCIPY`` or both.
    """

    def __init__(self, most: Callable[[], int], modules: Sequence[str]) -> None:
        self._most = most
        self._modules = tuple(modules)
        self._pools: tuple[Pool, ...] | None = None
        self._before: list[int] = []
        self._limit = 0
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return
            # Looked for once, on first use, since it opens libraries.
            if self._pools is None:
                self._pools = blas_pools(self._modules)
            self._limit = self._most()
            self._before = [pool.threads() for pool in self._pools]
            for pool, before in zip(self._pools, self._before, strict=True):
                if before > self._limit:
                    pool.limit(self._limit)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            for pool, before in zip(self._pools or (), self._before, strict=True):
                if before > self._limit:
                    pool.limit(before)
