"""Options of a class, read from its constructor: the one place where names, defaults and nesting are known.

An option is a keyword argument of the constructor whose value is plain data, or a *part*: an object such as an adapter
or a model that is chosen by name and has options of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mtl_benchmarks.components.reading import checked, conform, is_plain_type, takes_paths
from mtl_benchmarks.components.registry import Registry
from mtl_benchmarks.components.signatures import REQUIRED, Argument, arguments_of
from mtl_core import InvalidParameterError, UnknownNameError

__all__ = ["Choice", "Part", "PartTable", "as_choice", "construct", "option_arguments", "option_defaults", "resolve"]


@dataclass(frozen=True)
class Part:
    """An option that is an object.

    Attributes:
        registry: the classes it may have; the first is the default of a constructor that names none.
        made_by_owner: the constructor gets the class with its options, and makes the object when it needs one; else it
            gets the object.
        given_by_owner: arguments that the owner then gives, which are no options.
        offered_by_owner: likewise, but only to classes whose constructor has them.
    """

    registry: Registry
    made_by_owner: bool = False
    given_by_owner: frozenset[str] = frozenset()
    offered_by_owner: frozenset[str] = frozenset()

    @property
    def provided(self) -> frozenset[str]:
        """All arguments that are no options because the owner has them."""
        return self.given_by_owner | self.offered_by_owner

    def find(self, name: str) -> type:
        """The class of a name, as the registry finds it.

        Raises:
            UnknownNameError: there is none.
            InvalidInputError: it may not stand here, or does not take what the owner gives.
        """
        cls = self.registry.find(name)
        missing = sorted(self.given_by_owner - set(arguments_of(cls)))
        if missing:
            raise InvalidParameterError(
                f"{self.registry.kind} {name!r} must take {', '.join(missing)}, got a constructor with "
                f"{', '.join(arguments_of(cls)) or 'no arguments'}. Whoever uses it gives it these."
            )
        return cls

    def default_name(self, default: Any) -> str:
        """The name of a constructor's default, or of the first class where the constructor names none."""
        if default is None or default is REQUIRED:
            return self.registry.names()[0]
        cls = default if self.made_by_owner else type(default)
        return self.registry.name_of(f"{cls.__module__}:{cls.__qualname__}", cls)


PartTable = Mapping[str, Part]
"""Option → what it may be, for options that are parts."""

_GIVEN_BY_THE_RUN = frozenset({"method", "generator", "seed", "probe_batches"})


@dataclass(frozen=True)
class Choice:
    """Something chosen by name, with its options.

    Args:
        name: as registered.
        options: option → plain value, or another choice where the option is a part.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name as part of a file's name, in which a colon cannot stand everywhere."""
        return self.name.replace(":", ".")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return {"name": self.name, "options": {key: _plain(value) for key, value in self.options.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, name: str = "choice") -> Choice:
        """What :meth:`as_dict` gave.

        Args:
            data: plain data.
            name: what it is, for messages.

        Raises:
            InvalidParameterError: it is something else.
        """
        rule = f"`{name}` must be a mapping with a `name` and `options`"
        if not isinstance(data, Mapping) or set(data) != {"name", "options"}:
            raise InvalidParameterError(f"{rule}, got {data!r}.")
        if not isinstance(data["name"], str) or not isinstance(data["options"], Mapping):
            raise InvalidParameterError(f"{rule}, a text and a mapping, got {data!r}.")
        options = {}
        for key, value in data["options"].items():
            is_part = isinstance(value, dict) and set(value) == {"name", "options"}
            options[key] = cls.from_dict(value, name=key) if is_part else value
        return cls(data["name"], options)


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.as_dict()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str | Path)


def option_arguments(cls: type, parts: PartTable | None = None, *, given: Collection[str] = ()) -> dict[str, Argument]:
    """The constructor's arguments that are options, parts included.

    Arguments that the run provides (a generator, a seed, the wrapped method) are none, nor are those whose default is
    an object that is no part.

    Args:
        cls: a class whose constructor takes keyword arguments.
        parts: which options are parts.
        given: further arguments that whoever makes the object provides.
    """
    found: dict[str, Argument] = {}
    for name, argument in arguments_of(cls).items():
        # Runs say when an epoch begins (`start_epoch`), so that teleports need not count its steps. A benchmark whose
        # `steps_per_epoch` has a default keeps it as an option.
        if name in _GIVEN_BY_THE_RUN or name in given or (name == "steps_per_epoch" and argument.default is None):
            continue
        if name in (parts or {}) or argument.default is REQUIRED or _is_plain(argument.default):
            found[name] = argument
    return found


def option_defaults(cls: type, parts: PartTable | None = None, *, given: Collection[str] = ()) -> dict[str, Any]:
    """Option → default; a part's default is a :class:`Choice`, and an option without one has ``REQUIRED``.

    Args:
        cls: a class whose constructor takes keyword arguments.
        parts: which options are parts.
        given: further arguments that whoever makes the object provides.

    Example:
        >>> from mtl_benchmarks.models import OverlayCNN
        >>> option_defaults(OverlayCNN, given=("canvas",))
        {'width': 8, 'n_classes': 10}
    """
    parts = parts or {}
    defaults: dict[str, Any] = {}
    for name, argument in option_arguments(cls, parts, given=given).items():
        if name in parts:
            part = parts[name]
            chosen = part.default_name(argument.default)
            inner = option_defaults(part.find(chosen), given=part.provided)
            defaults[name] = Choice(chosen, inner)
        else:
            defaults[name] = conform(argument.annotation, argument.default)
    return defaults


def resolve(
    kind: str, choice: Choice, cls: type, parts: PartTable | None = None, *, given: Collection[str] = ()
) -> Choice:
    """The choice with every option set: those given, and the defaults of the others.

    Raises:
        UnknownNameError: an option or part that does not exist; lists those that do.
        InvalidParameterError: a value of another type, or a missing one.
    """
    parts = parts or {}
    arguments = option_arguments(cls, parts, given=given)
    options = option_defaults(cls, parts, given=given)
    for name, value in choice.options.items():
        if name not in options:
            raise UnknownNameError(f"option of {kind} {choice.name!r}", name, sorted(options))
        if name in parts:
            options[name] = _resolved_part(name, value, parts[name])
        else:
            options[name] = _checked(name, arguments[name], value)
    missing = [name for name, value in options.items() if value is REQUIRED]
    if missing:
        raise InvalidParameterError(
            f"`{missing[0]}` must be given for {kind} {choice.name!r}, which has no default for it."
        )
    return Choice(
        choice.name, {name: value if isinstance(value, Choice) else _plain(value) for name, value in options.items()}
    )


def _checked(name: str, argument: Argument, value: Any) -> Any:
    value = value.as_dict() if isinstance(value, Choice) else value  # it looked like one in a file
    found = conform(argument.annotation, value)
    # A default may be of another type than it is declared to be, as in `x: int = None`. As texts, for 1 is True to
    # Python.
    is_default = repr(found) == repr(conform(argument.annotation, argument.default))
    return found if is_default or not is_plain_type(argument.annotation) else checked(name, argument.annotation, value)


def as_choice(name: str, part: Part, value: Any) -> Choice:
    """What was chosen for a part: a choice, or its name alone.

    Raises:
        InvalidParameterError: it is neither.
    """
    chosen = Choice(value) if isinstance(value, str) else value
    if not isinstance(chosen, Choice):
        names = ", ".join(part.registry.names())
        raise InvalidParameterError(
            f"`{name}` must be one of {names}, or a mapping with a `name` and `options`, got {value!r}."
        )
    return chosen


def _resolved_part(name: str, value: Any, part: Part) -> Choice:
    chosen = as_choice(name, part, value)
    cls = part.find(chosen.name)
    own_name = part.registry.name_of(chosen.name, cls)
    return resolve(name, Choice(own_name, chosen.options), cls, given=part.provided)


def construct(cls: type, options: Mapping[str, Any], parts: PartTable | None = None, /, **given: Any) -> Any:
    """An instance of ``cls`` with these options.

    Args:
        cls: the class.
        options: resolved options.
        parts: which options are parts.
        given: what the run provides; arguments that the constructor does not take are left out, and a seed becomes
            a generator where it takes one.
    """
    known = arguments_of(cls)
    # A new generator for each object: two that shared one would draw differently when the other is configured away.
    if "seed" in given and "generator" in known:
        given["generator"] = torch.Generator().manual_seed(given["seed"])
    arguments = {name: value for name, value in given.items() if name in known}
    for name, value in options.items():
        if isinstance(value, Choice):
            part = (parts or {})[name]
            made = part.find(value.name)
            arguments[name] = (
                functools.partial(made, **value.options) if part.made_by_owner else construct(made, value.options)
            )
        elif isinstance(value, str) and takes_paths(known[name].annotation):
            arguments[name] = Path(value)
        else:
            arguments[name] = value
    return cls(**arguments)
