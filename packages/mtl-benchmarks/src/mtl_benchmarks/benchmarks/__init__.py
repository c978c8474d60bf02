"""The benchmarks, one file each, and their registry."""

from __future__ import annotations

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks.celeba import CelebA
from mtl_benchmarks.benchmarks.cityscapes import CityScapes
from mtl_benchmarks.benchmarks.ctr import CTR
from mtl_benchmarks.benchmarks.digits import Digits
from mtl_benchmarks.benchmarks.movielens import MovieLens
from mtl_benchmarks.benchmarks.mt10 import MT10
from mtl_benchmarks.benchmarks.nyuv2 import NYUv2
from mtl_benchmarks.benchmarks.qm9 import QM9
from mtl_benchmarks.benchmarks.toy import Toy
from mtl_benchmarks.benchmarks.yeast import Yeast
from mtl_benchmarks.components.registry import Registry

__all__ = [
    "BENCHMARKS",
    "CTR",
    "MT10",
    "QM9",
    "CelebA",
    "CityScapes",
    "Digits",
    "MovieLens",
    "NYUv2",
    "Toy",
    "Yeast",
    "available",
    "benchmark_class",
]

BENCHMARKS = Registry(
    "benchmark",
    "mtl.benchmarks",
    {cls.name: cls for cls in (CTR, MT10, QM9, CelebA, CityScapes, Digits, MovieLens, NYUv2, Toy, Yeast)},
    fits=lambda cls: issubclass(cls, Benchmark),
    rule="a subclass of mtl_benchmarks.Benchmark",
)
"""The benchmarks of this package, and those that other packages bring under ``mtl.benchmarks``."""


def available() -> list[str]:
    """Names of the benchmarks, sorted: of this package, and of those that bring some.

    Example:
        >>> available()
        ['celeba', 'cityscapes', 'ctr', 'digits', 'movielens', 'mt10', 'nyuv2', 'qm9', 'toy', 'yeast']
    """
    return sorted(BENCHMARKS.names())


def benchmark_class(name: str) -> type[Benchmark]:
    """The class behind a name, or behind ``package.module:Class``.

    Raises:
        UnknownNameError: there is no such benchmark; lists those that exist.
        InvalidInputError: another package brings it, and it cannot be imported or is no ``Benchmark``.
    """
    return BENCHMARKS.find(name)
