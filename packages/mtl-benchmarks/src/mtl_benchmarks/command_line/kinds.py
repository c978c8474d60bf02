"""What may be chosen by name, and how a choice is typed: ``cagrad:c=0.5``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtl_aggregators import available as available_methods
from mtl_benchmarks.benchmarks import available as available_benchmarks
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.components.options import Choice, Part, PartTable, option_arguments
from mtl_benchmarks.components.reading import read_value
from mtl_benchmarks.components.signatures import Argument
from mtl_benchmarks.configuration.making import PARTS, TELEPORTS, benchmark_parts, method_class, teleport_class
from mtl_core import InvalidParameterError, UnknownNameError
from mtl_core.extension import plain_name

__all__ = ["KINDS", "Kind", "KindName", "parse_choice", "parse_part"]

KindName = Literal["benchmark", "method", "teleport"]


@dataclass(frozen=True)
class Kind:
    """What may be chosen by name.

    Attributes:
        name: ``"method"``, which is also what its options begin with.
        names: those that are registered.
        find: the class behind a name.
        parts: options of that class that are objects.
    """

    name: KindName
    names: Callable[[], Sequence[str]]
    find: Callable[[str], type]
    parts: Callable[[type], PartTable]


KINDS: Mapping[KindName, Kind] = {
    "benchmark": Kind("benchmark", available_benchmarks, benchmark_class, benchmark_parts),
    "method": Kind("method", available_methods, method_class, lambda cls: {}),
    "teleport": Kind("teleport", TELEPORTS.names, teleport_class, lambda cls: PARTS),
}


def parse_part(part: Part, text: str) -> Choice:
    """``"segnetsplit"`` or ``"lora:rank=3"`` → the choice, under its registered name.

    Args:
        part: what kind of object it is.
        text: as typed.

    Raises:
        UnknownNameError: a name or option that does not exist.
        InvalidParameterError: an option without a value, or with one that is none.
    """
    name, options = _split_choice(text, part.registry.names())
    cls = part.find(name)
    own = part.registry.name_of(name, cls)
    return Choice(own, _typed(f"{part.registry.kind} {own!r}", options, option_arguments(cls, given=part.provided)))


def parse_choice(kind: KindName, text: str) -> Choice:
    """``"digits"`` or ``"digits:shift=2,width=4"`` → the choice; values are read by the constructor's types.

    ``package.module:Class`` is a name, and may have options too.

    Raises:
        UnknownNameError: a name or option that does not exist.
        InvalidParameterError: an option without a value, or with one that is none.

    Example:
        >>> parse_choice("method", "cagrad:c=1").options
        {'c': 1.0}
        >>> parse_choice("benchmark", "mtl_benchmarks:Digits:shift=2")
        Choice(name='mtl_benchmarks:Digits', options={'shift': 2})
    """
    kinds = KINDS[kind]
    name, options = _split_choice(text, kinds.names())
    cls = kinds.find(name)
    table = kinds.parts(cls)
    return Choice(name, _typed(f"{kind} {name!r}", options, option_arguments(cls, table), parts=table))


def _split_choice(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    name, colon, listed = text.partition(":")
    cls, _, further = listed.partition(":")
    # Behind a registered name stand options, and a word without a value is a mistake in them.
    if cls.isidentifier() and plain_name(name) not in map(plain_name, names):
        name, listed = f"{name}{colon}{cls}", further
    options: dict[str, str] = {}
    for word in filter(None, re.split(r",(?![^\[]*\])", listed)):  # commas in brackets belong to the value
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidParameterError(f"options must be like name:option=value,option=value, got {text!r}.")
        if key in options:
            raise InvalidParameterError(f"`{key}` must be given once, got {options[key]} and {value} in {text!r}.")
        options[key] = value
    return name, options


def _typed(
    owner: str, options: Mapping[str, str], known: Mapping[str, Argument], *, parts: PartTable | None = None
) -> dict[str, Any]:
    """Options behind a colon, read; those of a part stand behind its name: ``adapter=lora,adapter.rank=3``."""
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, str]] = {}
    for name, text in options.items():
        owner_part, dot, option = name.partition(".")
        if dot and owner_part in known and owner_part in (parts or {}):
            inner.setdefault(owner_part, {})[option] = text
        elif name not in known:
            raise UnknownNameError(f"option of {owner}", name, sorted(known))
        else:
            values[name] = text if name in (parts or {}) else read_value(name, known[name].annotation, text)
    for name, part in (parts or {}).items():
        if name in values or name in inner:
            default = part.default_name(known[name].default)
            cls = part.find(values.get(name, default))
            own = option_arguments(cls, given=part.provided)
            given = _typed(f"{name} {values.get(name, default)!r}", inner.get(name, {}), own)
            values[name] = Choice(values.get(name, default), given)
    return values
