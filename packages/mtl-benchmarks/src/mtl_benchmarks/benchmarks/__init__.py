"""The benchmarks, one file each, and their registry."""

from __future__ import annotations

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks.ctr import CTR
from mtl_benchmarks.benchmarks.digits import Digits
from mtl_benchmarks.benchmarks.qm9 import QM9
from mtl_benchmarks.benchmarks.toy import Toy
from mtl_core import InvalidInputError
from mtl_core.extension import find_plugin, is_spec, plain_name, plugin_names

__all__ = ["CTR", "GROUP", "QM9", "Digits", "Toy", "available", "benchmark_class", "own_benchmarks"]

GROUP = "mtl.benchmarks"
"""The entry point group under which other packages bring benchmarks."""


def own_benchmarks() -> dict[str, type[Benchmark]]:
    """The benchmarks of this package, by name."""
    return {cls.name: cls for cls in (CTR, QM9, Digits, Toy)}


def available() -> list[str]:
    """Names of the benchmarks, sorted: of this package, and of those that bring some under ``mtl.benchmarks``.

    Example:
        >>> available()
        ['ctr', 'digits', 'qm9', 'toy']
    """
    return sorted({*own_benchmarks(), *plugin_names(GROUP)})


def benchmark_class(name: str) -> type[Benchmark]:
    """The class behind a name, or behind ``package.module:Class``.

    Raises:
        UnknownNameError: there is no such benchmark; lists those that exist.
        InvalidInputError: another package brings it, and it cannot be imported or is no ``Benchmark``.
    """
    own = None if is_spec(name) else own_benchmarks().get(plain_name(name))
    if own is not None:
        return own
    found = find_plugin("benchmark", name, GROUP, own_benchmarks())
    if not isinstance(found, type) or not issubclass(found, Benchmark):
        raise InvalidInputError(
            f"benchmark {name!r} must be a subclass of mtl_benchmarks.Benchmark, got {found!r}. Inherit from it."
        )
    return found
