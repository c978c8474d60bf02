"""The benchmarks, one file each, and their registry."""

from __future__ import annotations

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks.ctr import CTR
from mtl_benchmarks.benchmarks.digits import Digits
from mtl_benchmarks.benchmarks.toy import Toy
from mtl_core import UnknownNameError

__all__ = ["CTR", "Digits", "Toy", "available", "benchmark_class"]

_BENCHMARKS: dict[str, type[Benchmark]] = {cls.name: cls for cls in (CTR, Digits, Toy)}


def available() -> list[str]:
    """Names of the benchmarks.

    Example:
        >>> available()
        ['ctr', 'digits', 'toy']
    """
    return sorted(_BENCHMARKS)


def benchmark_class(name: str) -> type[Benchmark]:
    """The class behind a name.

    Raises:
        UnknownNameError: there is no such benchmark; lists those that exist.
    """
    if name not in _BENCHMARKS:
        raise UnknownNameError("benchmark", name, available())
    return _BENCHMARKS[name]
