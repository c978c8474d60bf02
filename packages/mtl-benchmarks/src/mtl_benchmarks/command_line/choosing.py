"""What is chosen by name on a command line, and the options that come with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtl_aggregators import available as available_methods
from mtl_benchmarks.benchmarks import available as available_benchmarks
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.command_line.words import Words
from mtl_benchmarks.components.options import Choice, Part, PartTable, as_choice, option_arguments, option_defaults
from mtl_benchmarks.components.reading import read_value
from mtl_benchmarks.components.signatures import Argument
from mtl_benchmarks.configuration.making import PARTS, TELEPORTS, benchmark_parts, method_class, teleport_class
from mtl_core import InvalidParameterError, UnknownNameError
from mtl_core.extension import plain_name

__all__ = ["KINDS", "Chosen", "Kind", "KindName", "choose", "chosen_of", "parse_choice", "parse_part", "part_flag"]

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


@dataclass(frozen=True)
class Chosen:
    """A class chosen by name.

    Attributes:
        kind: what it is.
        choice: its name, with the options that stood behind the name or in a file.
        cls: the class.
        parts: part → the class chosen for it, with the options that are known of it so far.
        hidden: options that something else sets.
    """

    kind: Kind
    choice: Choice
    cls: type
    parts: Mapping[str, Choice] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    def options(self, *, defaults: Mapping[str, Any] | None = None) -> list[Option]:
        """The options of the class and of its parts.

        Args:
            defaults: option → default, where these are other than the class's own.
        """
        table = self.kind.parts(self.cls)
        known = {**option_defaults(self.cls, table), **(defaults or {}), **self.choice.options}
        found: list[Option] = []
        for name, argument in option_arguments(self.cls, table).items():
            if name not in table and name not in self.hidden:
                found.append(_option(f"--{self.kind.name}.{name}", argument, known[name]))
        for name, chosen in self.parts.items():
            part, flag = table[name], part_flag(self.kind, name)
            about = f"{name} by name, or package.module:Class"
            found.append(Option(flag, str, about, chosen.name, shown="NAME", names=part.registry.names))
            cls = part.find(chosen.name)
            inner = {**option_defaults(cls, given=part.provided), **chosen.options}
            for option, argument in option_arguments(cls, given=part.provided).items():
                found.append(_option(f"{flag}.{option}", argument, inner[option]))
        return found

    def resolved(self, values: Mapping[str, Any]) -> Choice:
        """The choice with the values that were given.

        Args:
            values: flag → value; flags of others are passed over.
        """
        prefix = f"--{self.kind.name}."
        table = self.kind.parts(self.cls)
        own = {name: value for name, value in self.choice.options.items() if name not in table}
        for name in option_arguments(self.cls, table):
            if name not in table and prefix + name in values:
                own[name] = values[prefix + name]
        for name, chosen in self.parts.items():
            flag = part_flag(self.kind, name)
            given = {f.removeprefix(f"{flag}."): value for f, value in values.items() if f.startswith(f"{flag}.")}
            own[name] = Choice(chosen.name, {**chosen.options, **given})
        return Choice(self.choice.name, own)

    def spelt_out(self, flag: str) -> str:
        """A flag of a part needs the part's name only where it is not unique: ``--teleport.rank``."""
        prefix = f"--{self.kind.name}."
        name = flag.removeprefix(prefix)
        table = self.kind.parts(self.cls)
        if not flag.startswith(prefix) or "." in name or name in option_arguments(self.cls, table):
            return flag
        owners = [
            part
            for part, chosen in self.parts.items()
            if name in option_arguments(table[part].find(chosen.name), given=table[part].provided)
        ]
        return f"{part_flag(self.kind, owners[0])}.{name}" if len(owners) == 1 else flag


def part_flag(kind: Kind, part: str) -> str:
    """How a part is named on the command line; that of a benchmark is so common that it stands alone."""
    return "--model" if (kind.name, part) == ("benchmark", "model") else f"--{kind.name}.{part}"


def _option(flag: str, argument: Argument, default: Any) -> Option:
    shown = "none" if default is None else default
    return Option(flag, argument.annotation, argument.help, shown)


def choose(
    kind: KindName,
    text: str | Choice,
    *,
    parts: Mapping[str, Sequence[str]],
    defaults: Mapping[str, Any] | None = None,
    hidden: Iterable[str] = (),
) -> Chosen:
    """A class by its name, with its parts.

    Args:
        kind: what is chosen.
        text: the name, maybe with options behind a colon; or a choice from a file.
        parts: flag of a part → the words given for it.
        defaults: option → default, where these are other than the class's own.
        hidden: options that something else sets.

    Raises:
        UnknownNameError: a name or option that does not exist.
        InvalidInputError: a value that is none, or a part that this class does not take.
    """
    kinds = KINDS[kind]
    choice = parse_choice(kind, text) if isinstance(text, str) else text
    cls = kinds.find(choice.name)
    table, known = kinds.parts(cls), option_defaults(cls, kinds.parts(cls))
    chosen: dict[str, Choice] = {}
    for name, part in table.items():
        flag = part_flag(kinds, name)
        if name not in known:
            if flag in parts:
                takes = ", ".join(sorted(known)) or "none"
                raise InvalidParameterError(
                    f"`{flag}` must belong to {kind} {choice.name!r}, got a {kind} without a choice of {name}. "
                    f"Its options: {takes}."
                )
            continue
        base = choice.options.get(name, (defaults or {}).get(name, known[name].name))
        chosen[name] = _chosen_part(flag, part, parts.get(flag), as_choice(name, part, base))
    return Chosen(kinds, choice, cls, chosen, frozenset(hidden))


def chosen_of(
    kind: KindName,
    text: str | None,
    base: Choice | None,
    words: Words,
    *,
    defaults: Mapping[str, Any] | None = None,
    hidden: Sequence[str] = (),
) -> Chosen:
    """The class for a name, with the options of the base where that is of the same class.

    Args:
        kind: what is chosen.
        text: the name as typed; None: that of the base.
        base: what a file chose.
        words: as typed, for the names of parts.
        defaults: as for :func:`choose`.
        hidden: likewise.
    """
    typed = base if text is None else parse_choice(kind, text)
    assert typed is not None
    if text is not None and base is not None and KINDS[kind].find(typed.name) is KINDS[kind].find(base.name):
        typed = Choice(base.name, {**base.options, **typed.options})
    return choose(kind, typed, parts=words.given, defaults=defaults, hidden=hidden)


def _chosen_part(flag: str, part: Part, words: Sequence[str] | None, base: Choice) -> Choice:
    if words is None:
        return base
    if not words:
        raise InvalidParameterError(f"`{flag}` must be followed by a name, got none.")
    given = parse_part(part, words[0])
    # Options of the base belong to its class: another adapter does not inherit the rank of the one before.
    same = part.registry.name_of(base.name, part.find(base.name)) == given.name
    return Choice(given.name, {**(base.options if same else {}), **given.options})


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
