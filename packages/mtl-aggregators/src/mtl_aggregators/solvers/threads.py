"""One BLAS thread for small matrices, whatever the process has set for large ones."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["FEW", "Pool", "blas_pools", "one_thread"]

FEW = 16
"""Rows up to which OpenBLAS keeps to the calling thread by itself in all that the solvers call."""

LINKED = ("numpy.linalg._umath_linalg", "scipy.linalg._flapack")
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


def blas_pools() -> tuple[Pool, ...]:
    """The thread pools of the BLAS that numpy and scipy are linked to; those that are not OpenBLAS are left out."""
    found: dict[int | None, Pool] = {}
    for module in LINKED:
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


class _OneThread:
    """A context in which numpy's and scipy's BLAS use the calling thread only.

    OpenBLAS hands parts of an eigen-decomposition to its threads from about 30 rows on, and waits for them. Where other
    processes hold the cores, that wait is a turn of the scheduler: a solve of 0.7 ms took 15. The context may be
    entered again within itself and in several threads; the last one to leave restores what the first one found.
    """

    def __init__(self) -> None:
        self._pools: tuple[Pool, ...] | None = None
        self._before: list[int] = []
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return
            # Looked for once, on first use, since it opens libraries.
            if self._pools is None:
                self._pools = blas_pools()
            self._before = [pool.threads() for pool in self._pools]
            for pool, before in zip(self._pools, self._before, strict=True):
                if before > 1:
                    pool.limit(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            for pool, before in zip(self._pools or (), self._before, strict=True):
                if before > 1:
                    pool.limit(before)


one_thread = _OneThread()
"""``with one_thread:`` around work on small matrices. It takes a few microseconds."""
