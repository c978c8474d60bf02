"""What is chosen by name on a command line, and the options that come with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtl_benchmarks.command_line.kinds import KINDS, Kind, KindName, parse_choice, parse_part
from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.command_line.words import Words
from mtl_benchmarks.components.options import Choice, Part, as_choice, option_arguments, option_defaults
from mtl_benchmarks.components.signatures import Argument
from mtl_core import InvalidParameterError

__all__ = ["Chosen", "choose", "chosen_of", "part_flag"]


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
        chosen[name] = _chosen_part(flag, part, parts, as_choice(name, part, base))
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
    behind = {} if text is None else typed.options
    if text is not None and base is not None and KINDS[kind].find(typed.name) is KINDS[kind].find(base.name):
        typed = Choice(base.name, {**base.options, **typed.options})
    found = choose(kind, typed, parts=words.given, defaults=defaults, hidden=hidden)
    for name, value in behind.items():
        own = part_flag(found.kind, name) if isinstance(value, Choice) else f"--{kind}.{name}"
        _refuse_twice([own], words.given, found.spelt_out)
        if isinstance(value, Choice):
            _refuse_twice([f"{own}.{inner}" for inner in value.options], words.given, found.spelt_out)
    return found


def _refuse_twice(
    behind: Iterable[str], given: Iterable[str], spelt_out: Callable[[str], str] = lambda flag: flag
) -> None:
    """Refuse an option that stands behind a name's colon and by itself."""
    taken = set(behind)
    for flag in given:
        if spelt_out(flag) in taken:
            raise InvalidParameterError(
                f"`{flag}` must be given once, got it behind the name's colon, too. Leave one of them out."
            )


def _chosen_part(flag: str, part: Part, words: Mapping[str, Sequence[str]], base: Choice) -> Choice:
    if flag not in words:
        return base
    if not words[flag]:
        raise InvalidParameterError(f"`{flag}` must be followed by a name, got none.")
    given = parse_part(part, words[flag][0])
    _refuse_twice([f"{flag}.{option}" for option in given.options], words)
    # Options of the base belong to its class: another adapter does not inherit the rank of the one before.
    same = part.registry.name_of(base.name, part.find(base.name)) == given.name
    return Choice(given.name, {**(base.options if same else {}), **given.options})
