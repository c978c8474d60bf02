"""What there is, in words: the texts of ``mtl-bench list`` and ``describe``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mtl_aggregators
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.components.options import PartTable, option_arguments, option_defaults
from mtl_benchmarks.components.reading import placeholder
from mtl_benchmarks.components.registry import defines
from mtl_benchmarks.components.signatures import REQUIRED, summary_of
from mtl_benchmarks.configuration.making import (
    ADAPTERS,
    MODELS,
    PARTS,
    TELEPORTS,
    TRIGGERS,
    benchmark_parts,
    method_class,
    teleport_class,
)
from mtl_benchmarks.paper_figures.registry import FIGURES, PaperFigure, find_figure
from mtl_core import InvalidInputError, UnknownNameError
from mtl_core.extension import is_spec, load_spec, plain_name

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["describe", "names", "overview"]


@dataclass(frozen=True)
class _Kind:
    """One kind of thing that has a name."""

    name: str
    names: Callable[[], Sequence[str]]
    find: Callable[[str], type]
    flag: str


_KINDS = (
    _Kind("benchmark", available, benchmark_class, "--benchmark"),
    _Kind("method", mtl_aggregators.available, method_class, "--method"),
    _Kind("teleport", TELEPORTS.names, teleport_class, "--teleport"),
    _Kind("adapter", ADAPTERS.names, ADAPTERS.find, "--teleport.adapter"),
    _Kind("trigger", TRIGGERS.names, TRIGGERS.find, "--teleport.trigger"),
    _Kind("model", MODELS.names, MODELS.find, "--model"),
)


def names() -> list[str]:
    """Every name that can be described."""
    return [*(name for kind in _KINDS for name in kind.names()), *FIGURES]


def overview() -> Table:
    """Every name with its first line."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=True)
    for heading in ("kind", "name", "what it is"):
        table.add_column(heading)
    for kind in _KINDS:
        for name in kind.names():
            table.add_row(kind.name, name, escape(_line_of(name, kind.find)))
    for name, figure in FIGURES.items():
        table.add_row("figure", name, escape(f"{figure.source}: {figure.title}"))
    return table


def describe(name: str) -> str:
    """A benchmark, method, teleport, model, part of a teleport or figure; or a class as ``package.module:Class``.

    Raises:
        UnknownNameError: nothing has that name; lists all names.
        InvalidInputError: another package brings it, and it cannot be imported.

    Example:
        >>> print(describe("digits").splitlines()[0])
        benchmark digits: Two handwritten digits on one canvas: which is where, and what does the picture look like?
    """
    kind = _kind_of(name)
    if kind is None and plain_name(name) in map(plain_name, FIGURES):
        return _of_figure(find_figure(name))
    if kind is None:
        raise UnknownNameError("name", name, names())
    cls = kind.find(name)
    if kind.name == "method":
        return f"method {name}\n{mtl_aggregators.describe(name)}\n{_options(cls, kind.flag)}"
    lines = [f"{kind.name} {name}: {inspect.getdoc(cls) or ''}", ""]
    if issubclass(cls, Benchmark):
        lines += [*_of_benchmark(cls), _options(cls, kind.flag, benchmark_parts(cls))]
    else:
        lines.append(_options(cls, kind.flag, PARTS if kind.name == "teleport" else None))
    return "\n".join(lines)


def _kind_of(name: str) -> _Kind | None:
    """Of a registered name, what it is registered as; of a class, the first kind that it fits."""
    if is_spec(name):
        cls = load_spec("name", name)
        if isinstance(cls, type) and issubclass(cls, Benchmark):
            return _KINDS[0]
        fitting = (TELEPORTS, _KINDS[2]), (ADAPTERS, _KINDS[3]), (MODELS, _KINDS[5])
        found = (kind for registry, kind in fitting if isinstance(cls, type) and registry.fits(cls))
        chosen = next(found, _KINDS[1])
        # Methods of this family are torch modules, too; what tells them from networks is what a step asks them for.
        is_method = isinstance(cls, type) and any(defines(cls, name) for name in ("weights", "step", "facts"))
        return _KINDS[1] if chosen.name == "model" and is_method else chosen
    plain = plain_name(name)
    return next((kind for kind in _KINDS if plain in map(plain_name, kind.names())), None)


def _of_figure(figure: PaperFigure) -> str:
    return "\n".join(
        [
            f"figure {figure.name}, {figure.source}: {figure.title}",
            *textwrap.wrap(f"in the paper: {figure.printed}", 110, subsequent_indent="    "),
            f"methods: {', '.join(figure.methods)}",
            f"as it is: {figure.command}",
            f"as printed: mtl-bench figure {figure.name} {figure.papers_words}",
        ]
    )


def _of_benchmark(cls: type[Benchmark]) -> list[str]:
    lines = ["tasks: " + ", ".join(cls.tasks), "metrics:"]
    for metric in cls.metrics:
        direction = "higher is better" if metric.higher_is_better else "lower is better"
        unit = f" [{metric.unit}]" if metric.unit else ""
        lines.append(f"  {metric.name}{unit}, of {metric.task}, {direction}")
    if REQUIRED not in option_defaults(cls, benchmark_parts(cls)).values():
        lines.append(f"protocol: {cls().training.in_words()}")
    return lines


def _line_of(name: str, find: Callable[[str], type]) -> str:
    try:
        return summary_of(find(name))
    except InvalidInputError as error:  # one broken package must not hide all other names
        return str(error)


def _options(cls: type, flag: str, parts: PartTable | None = None) -> str:
    lines = ["options (default):"]
    defaults = option_defaults(cls, parts)
    for name, argument in option_arguments(cls, parts).items():
        default = defaults[name]
        option = "--model" if (flag, name) == ("--benchmark", "model") else f"{flag}.{name}"
        if name in (parts or {}):
            lines.append(f"  {option} NAME ({default.name})")
            continue
        shown = "required" if default is REQUIRED else "none" if default is None else _shown(default)
        lines.append(f"  {option} {placeholder(argument.annotation)} ({shown})")
        lines += textwrap.wrap(argument.help, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
