"""What there is, in words: the texts of ``mtl-bench list`` and ``describe``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from rich.table import Table

import mtl_aggregators
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.components import PARTS, method_class, teleport_class, teleports
from mtl_benchmarks.options import REQUIRED, Choice, option_defaults
from mtl_core import InvalidInputError, UnknownNameError
from mtl_core.extension import is_spec, load_spec, plain_name

__all__ = ["describe", "overview"]


def overview() -> Table:
    """Every name with its first line."""
    table = Table(show_header=True)
    for heading in ("kind", "name", "what it is"):
        table.add_column(heading)
    kinds = (
        ("benchmark", available(), benchmark_class),
        ("method", mtl_aggregators.available(), method_class),
        ("teleport", teleports(), teleport_class),
    )
    for kind, names, find in kinds:
        for name in names:
            table.add_row(kind, name, _line_of(name, find))
    for part, classes in PARTS.items():
        for name, cls in classes.items():
            table.add_row(f"teleport.{part}", name, _first_line(cls))
    return table


def describe(name: str) -> str:
    """A benchmark, method, teleport or part of one; or a class as ``package.module:Class``.

    Raises:
        UnknownNameError: nothing has that name; lists all names.
        InvalidInputError: another package brings it, and it cannot be imported.

    Example:
        >>> print(describe("digits").splitlines()[0])
        benchmark digits: Two handwritten digits on one canvas: which is where, and what does the picture look like?
    """
    kind = _kind_of(name)
    if kind == "benchmark":
        return _describe_benchmark(name)
    if kind == "method":
        return f"method {name}\n{mtl_aggregators.describe(name)}"
    if kind == "teleport":
        cls = teleport_class(name)
        return f"teleport {name}: {inspect.getdoc(cls) or ''}\n\n{_options(cls, 'teleport')}"
    for part, classes in PARTS.items():
        if name in classes:
            return (
                f"{part} {name}: {inspect.getdoc(classes[name]) or ''}\n\n{_options(classes[name], f'teleport.{part}')}"
            )
    parts = [each for classes in PARTS.values() for each in classes]
    raise UnknownNameError("name", name, [*available(), *mtl_aggregators.available(), *teleports(), *parts])


def _kind_of(name: str) -> str | None:
    """Of a registered name, what it is registered as; of a class, what its form says."""
    if is_spec(name):
        cls = load_spec("name", name)
        if isinstance(cls, type) and issubclass(cls, Benchmark):
            return "benchmark"
        return "teleport" if "method" in inspect.signature(cls).parameters else "method"
    plain = plain_name(name)
    kinds = {"benchmark": available(), "method": mtl_aggregators.available(), "teleport": teleports()}
    return next((kind for kind, names in kinds.items() if plain in names), None)


def _describe_benchmark(name: str) -> str:
    cls = benchmark_class(name)
    lines = [f"benchmark {name}: {inspect.getdoc(cls) or ''}", "", "tasks: " + ", ".join(cls.tasks), "metrics:"]
    for metric in cls.metrics:
        direction = "higher is better" if metric.higher_is_better else "lower is better"
        unit = f" [{metric.unit}]" if metric.unit else ""
        lines.append(f"  {metric.name}{unit}, of {metric.task}, {direction}")
    if REQUIRED not in option_defaults(cls).values():
        lines.append(f"protocol: {cls().training.in_words()}")
    lines.append(_options(cls, "benchmark"))
    return "\n".join(lines)


def _line_of(name: str, find: Callable[[str], type]) -> str:
    try:
        return _first_line(find(name))
    except InvalidInputError as error:  # one broken package must not hide all other names
        return str(error)


def _options(cls: type, key: str) -> str:
    lines = ["options (default):"]
    for name, default in option_defaults(cls, PARTS).items():
        shown = "required" if default is REQUIRED else default.name if isinstance(default, Choice) else repr(default)
        lines.append(f"  --{key}.{name} ({shown})")
    return "\n".join(lines)


def _first_line(cls: type) -> str:
    line = (inspect.getdoc(cls) or "").partition("\n")[0]
    return re.sub(r":\w+:`([^`]*)`", r"\1", line).replace("``", "")
