"""Of which code and data a run is made that is not of these packages, as short digests for its record."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.components.options import Choice, PartTable
from mtl_benchmarks.components.reading import takes_paths
from mtl_benchmarks.components.signatures import Argument, arguments_of
from mtl_benchmarks.configuration.making import PARTS, benchmark_parts, make_benchmark, method_class, teleport_class
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.storage.contents import contents
from mtl_core.extension import load_spec

__all__ = ["origin"]

_RECORDED = frozenset({"mtl_aggregators", "mtl_benchmarks", "mtl_core", "mtl_teleport", "numpy", "scipy", "torch"})
"""Packages whose versions stand in the record anyway."""


def origin(config: RunConfig) -> dict[str, dict[str, str]]:
    """What a run's numbers depend on beside its configuration and the recorded versions.

    Args:
        config: of the run.

    Returns:
        ``code``: module → digest of its file, of the classes (and their bases) that other packages or modules of one's
        own bring, with the version of an installed package. What a module of one's own imports from other such modules
        is among them. ``data``: name → digest of what it names, see ``Benchmark.files``. What has no file is left out.
    """
    classes = {
        each.__module__ for made in _classes(config) for each in (made.__mro__ if isinstance(made, type) else (made,))
    }
    code = {name: found for name in sorted(_reached(classes)) if (found := _code(name)) is not None}
    given, known = config.benchmark.options, arguments_of(benchmark_class(config.benchmark.name))
    named = {name: value for name, value in given.items() if value and _names_files(name, value, known[name])}
    paths = {name: [Path(value).expanduser()] for name, value in named.items()}
    paths |= {name: list(found) for name, found in make_benchmark(config.benchmark).files().items()}
    data = {name: found for name, each in paths.items() if (found := contents(each)) is not None}
    return {"code": code, "data": data}


def _names_files(name: str, value: Any, argument: Argument) -> bool:
    """Whether an option is that of a file or folder: by its type, or a text by its name or by what lies there.

    ``root`` is what a benchmark calls the folder of its data, of whatever type; see ``ReadsFiles``.
    """
    if not isinstance(value, str):
        return False
    return name == "root" or takes_paths(argument.annotation) or Path(value).is_file()


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


def _reached(names: Iterable[str]) -> set[str]:
    """These modules, and those of one's own that they import: a class may stand on a file beside its own."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in sys.modules:
            continue
        found.add(name)
        if _is_own(name):
            waiting += [used for used in _imports(name) if _is_own(used)]
    return found


def _imports(name: str) -> Iterator[str]:
    """What the text of a module imports, wherever it stands; also what may be an object and no module."""
    try:
        tree = ast.parse(_source(name))
    except (SyntaxError, ValueError):  # it has been edited since it was imported, into something that cannot be read
        return
    # Anything may lie under the name of a module.
    module = sys.modules[name]
    package = (module.__package__ if isinstance(module, ModuleType) else None) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            used = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for each in used:  # with the packages that it is in
            parts = each.split(".")
            yield from (".".join(parts[: k + 1]) for k in range(len(parts)))


def _is_own(name: str) -> bool:
    """Whether a module is of a file that a person works on, and of no installed package."""
    package = name.partition(".")[0]
    return package not in _RECORDED and package not in sys.stdlib_module_names and not _versions(package)


def _code(name: str) -> str | None:
    package = name.partition(".")[0]
    if package in _RECORDED or package in sys.stdlib_module_names:
        return None
    content = _source(name)
    found = [*_versions(package), *([hashlib.sha256(content).hexdigest()[:12]] if content else [])]
    return " ".join(found) or None


def _source(name: str) -> bytes:
    """The file of a module, empty where there is none."""
    try:
        file = inspect.getsourcefile(sys.modules[name])
        return b"" if file is None else Path(file).read_bytes()
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return b""


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _versions(package: str) -> tuple[str, ...]:
    return tuple(version(name) for name in dict.fromkeys(_distributions().get(package, ())))
