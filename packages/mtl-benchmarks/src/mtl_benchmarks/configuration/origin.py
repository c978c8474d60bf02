"""Of which code and data a run is made that is not of these packages, as short digests for its record."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.components.options import Choice, PartTable
from mtl_benchmarks.components.reading import takes_paths
from mtl_benchmarks.components.signatures import arguments_of
from mtl_benchmarks.configuration.making import PARTS, benchmark_parts, method_class, teleport_class
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_core.extension import load_spec

__all__ = ["origin"]

_RECORDED = frozenset({"mtl_aggregators", "mtl_benchmarks", "mtl_core", "mtl_teleport", "numpy", "torch"})
"""Packages whose versions stand in the record anyway."""
_MOST_FILES = 20_000
"""So many files of a folder are looked at: a folder of faces has ten times as many, and a disk may be far away."""


def origin(config: RunConfig) -> dict[str, dict[str, str]]:
    """What a run's numbers depend on beside its configuration and the recorded versions.

    Args:
        config: of the run.

    Returns:
        ``code``: module → digest of its file, of the classes (and their bases) that other packages or modules of one's
        own bring, with the version of an installed package. ``data``: option → digest of names, sizes and times of the
        files in the folder that it names. What has no file is left out.
    """
    modules = {each.__module__ for made in _classes(config) for each in getattr(made, "__mro__", (made,))}
    code = {name: found for name in sorted(modules) if (found := _code(name)) is not None}
    given, known = config.benchmark.options, arguments_of(benchmark_class(config.benchmark.name))
    # `root` is what a benchmark calls the folder of its data, of whatever type; see `ReadsFiles`.
    paths = {name: value for name, value in given.items() if name == "root" or takes_paths(known[name].annotation)}
    data = {name: found for name, value in paths.items() if value and (found := _files(Path(value))) is not None}
    return {"code": code, "data": data}


def _classes(config: RunConfig) -> Iterator[type]:
    cls = benchmark_class(config.benchmark.name)
    yield cls
    yield from _parts(config.benchmark, benchmark_parts(cls))
    yield method_class(config.method.name)
    if config.teleport is not None:
        yield teleport_class(config.teleport.name)
        yield from _parts(config.teleport, PARTS)
    if config.training.clip is not None and config.training.clip.function is not None:
        yield load_spec("function", config.training.clip.function)


def _parts(choice: Choice, parts: PartTable) -> Iterable[type]:
    return [parts[name].find(value.name) for name, value in choice.options.items() if isinstance(value, Choice)]


def _code(name: str) -> str | None:
    package = name.partition(".")[0]
    if package in _RECORDED or package in sys.stdlib_module_names or name not in sys.modules:
        return None
    try:
        file = inspect.getsourcefile(sys.modules[name])
        content = b"" if file is None else Path(file).read_bytes()
    except (OSError, TypeError):  # typed at a prompt, or compiled
        content = b""
    found = [*_versions(package), *([hashlib.sha256(content).hexdigest()[:12]] if content else [])]
    return " ".join(found) or None


@cache
def _versions(package: str) -> tuple[str, ...]:
    return tuple(version(name) for name in dict.fromkeys(packages_distributions().get(package, ())))


def _files(root: Path) -> str | None:
    if root.is_file():
        found: Iterable[Path] = [root]
    else:
        found = (Path(folder, name) for folder, names in _walked(root) for name in names)
    digest, count = hashlib.sha256(), 0
    for count, path in enumerate(itertools.islice(found, _MOST_FILES), start=1):  # noqa: B007 - counts
        try:
            seen = path.stat()
        except OSError:  # a link that leads nowhere
            continue
        digest.update(
            f"{path.relative_to(root)}\0{seen.st_size}\0{seen.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:12] if count else None


def _walked(root: Path) -> Iterator[tuple[str, list[str]]]:
    for folder, folders, names in os.walk(root):
        folders.sort()  # in place: it is what `os.walk` goes on with
        yield folder, sorted(names)
