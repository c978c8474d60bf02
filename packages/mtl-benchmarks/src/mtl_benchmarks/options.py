"""Options of a class, read from its constructor: the one place where names, defaults and nesting are known.

An option is a keyword argument of the constructor whose value is plain data, or a *part*: an object such as an adapter
that is chosen by name and has options of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mtl_core import InvalidParameterError, UnknownNameError

__all__ = ["REQUIRED", "Choice", "PartTable", "construct", "option_defaults", "resolve"]

PartTable = Mapping[str, Mapping[str, type]]
"""option → name → class, for options that are parts; the first class is the default of a constructor that has None."""

REQUIRED = inspect.Parameter.empty
"""Stands for the default of an option that has none."""

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
    def from_dict(cls, data: Mapping[str, Any]) -> Choice:
        """What :meth:`as_dict` gave."""
        options = {}
        for key, value in data["options"].items():
            is_part = isinstance(value, dict) and set(value) == {"name", "options"}
            options[key] = cls.from_dict(value) if is_part else value
        return cls(data["name"], options)


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.as_dict()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def option_defaults(cls: type, parts: PartTable | None = None) -> dict[str, Any]:
    """Option → default; a part's default is a :class:`Choice`.

    Arguments that the run provides (a generator, a seed, the wrapped method) are no options, nor are those whose
    default is an object that is no part. An option without a default has :data:`REQUIRED`.

    Args:
        cls: a class whose constructor takes keyword arguments.
        parts: which options are parts, and by which names their classes are chosen.

    Example:
        >>> from mtl_benchmarks.models import OverlayCNN
        >>> option_defaults(OverlayCNN)
        {'canvas': 12, 'width': 8, 'n_classes': 10}
    """
    parts = parts or {}
    defaults: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in _GIVEN_BY_THE_RUN or (name == "steps_per_epoch" and parameter.default is None):
            continue
        if name in parts:
            chosen = next(
                (k for k, part in parts[name].items() if type(parameter.default) is part), next(iter(parts[name]))
            )
            defaults[name] = Choice(chosen, option_defaults(parts[name][chosen]))
        elif parameter.default is REQUIRED or _is_plain(parameter.default):
            defaults[name] = parameter.default
    return defaults


def resolve(kind: str, choice: Choice, cls: type, parts: PartTable | None = None) -> Choice:
    """The choice with every option set: those given, and the defaults of the others.

    Raises:
        UnknownNameError: an option or part that does not exist; lists those that do.
    """
    parts = parts or {}
    defaults = option_defaults(cls, parts)
    options = dict(defaults)
    for name, value in choice.options.items():
        if name not in defaults:
            raise UnknownNameError(f"option of {kind} {choice.name!r}", name, sorted(defaults))
        if name in parts:
            part = Choice(value) if isinstance(value, str) else value
            if not isinstance(part, Choice):
                raise InvalidParameterError(f"`{name}` must be one of {', '.join(parts[name])}, got {value!r}.")
            if part.name not in parts[name]:
                raise UnknownNameError(f"{name} of {choice.name!r}", part.name, parts[name])
            options[name] = resolve(name, part, parts[name][part.name])
        else:
            options[name] = _plain(value)
    missing = [name for name, value in options.items() if value is REQUIRED]
    if missing:
        raise InvalidParameterError(
            f"`{missing[0]}` must be given for {kind} {choice.name!r}, which has no default for it."
        )
    return Choice(
        choice.name, {name: value if isinstance(value, Choice) else _plain(value) for name, value in options.items()}
    )


def construct(cls: type, options: Mapping[str, Any], parts: PartTable | None = None, /, **given: Any) -> Any:
    """An instance of ``cls`` with these options.

    Args:
        cls: the class.
        options: resolved options.
        parts: classes of the parts.
        given: what the run provides; arguments that the constructor does not take are left out, and a seed becomes
            a generator where it takes one.
    """
    parameters = inspect.signature(cls).parameters
    if "seed" in given and "generator" in parameters:
        given["generator"] = torch.Generator().manual_seed(given["seed"])
    arguments = {name: value for name, value in given.items() if name in parameters}
    for name, value in options.items():
        if isinstance(value, Choice):
            arguments[name] = construct((parts or {})[name][value.name], value.options)
        else:
            arguments[name] = value
    return cls(**arguments)
