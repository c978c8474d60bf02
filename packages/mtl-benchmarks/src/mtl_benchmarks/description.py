"""What there is, in words: the texts of ``mtl-bench list`` and ``describe``."""

from __future__ import annotations

import inspect
import re

from rich.table import Table

import mtl_aggregators
from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.components import PARTS, TELEPORTS, method_class
from mtl_benchmarks.options import REQUIRED, Choice, option_defaults
from mtl_core import UnknownNameError

__all__ = ["describe", "overview"]


def overview() -> Table:
    """Every name with its first line."""
    table = Table(show_header=True)
    for heading in ("kind", "name", "what it is"):
        table.add_column(heading)
    for name in available():
        table.add_row("benchmark", name, _first_line(benchmark_class(name)))
    for name in mtl_aggregators.available():
        table.add_row("method", name, _first_line(method_class(name)))
    for name, cls in TELEPORTS.items():
        table.add_row("teleport", name, _first_line(cls))
    for part, classes in PARTS.items():
        for name, cls in classes.items():
            table.add_row(f"teleport.{part}", name, _first_line(cls))
    return table


def describe(name: str) -> str:
    """A benchmark, method, teleport or part of one.

    Raises:
        UnknownNameError: nothing has that name; lists all names.

    Example:
        >>> print(describe("digits").splitlines()[0])
        benchmark digits: Two handwritten digits on one canvas: which is where, and what does the picture look like?
    """
    if name in available():
        return _describe_benchmark(name)
    if name in mtl_aggregators.available():
        return f"method {name}\n{mtl_aggregators.describe(name)}"
    if name in TELEPORTS:
        cls = TELEPORTS[name]
        return f"teleport {name}: {inspect.getdoc(cls) or ''}\n\n{_options(cls, 'teleport')}"
    for part, classes in PARTS.items():
        if name in classes:
            return (
                f"{part} {name}: {inspect.getdoc(classes[name]) or ''}\n\n{_options(classes[name], f'teleport.{part}')}"
            )
    parts = [each for classes in PARTS.values() for each in classes]
    raise UnknownNameError("name", name, [*available(), *mtl_aggregators.available(), *TELEPORTS, *parts])


def _describe_benchmark(name: str) -> str:
    cls = benchmark_class(name)
    training = cls().training
    lines = [f"benchmark {name}: {inspect.getdoc(cls) or ''}", "", "tasks: " + ", ".join(cls.tasks), "metrics:"]
    for metric in cls.metrics:
        direction = "higher is better" if metric.higher_is_better else "lower is better"
        unit = f" [{metric.unit}]" if metric.unit else ""
        lines.append(f"  {metric.name}{unit}, of {metric.task}, {direction}")
    lines.append(f"protocol: {training.epochs} epochs, batches of {training.batch_size}, Adam with lr {training.lr:g}")
    lines.append(_options(cls, "benchmark"))
    return "\n".join(lines)


def _options(cls: type, key: str) -> str:
    lines = ["options (default):"]
    for name, default in option_defaults(cls, PARTS).items():
        shown = "required" if default is REQUIRED else default.name if isinstance(default, Choice) else repr(default)
        lines.append(f"  --{key}.{name} ({shown})")
    return "\n".join(lines)


def _first_line(cls: type) -> str:
    line = (inspect.getdoc(cls) or "").partition("\n")[0]
    return re.sub(r":\w+:`([^`]*)`", r"\1", line).replace("``", "")
