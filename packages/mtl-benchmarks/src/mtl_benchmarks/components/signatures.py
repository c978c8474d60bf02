"""The arguments of a constructor: their types, defaults and what the docstring says of them."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import docstring_parser

__all__ = ["REQUIRED", "Argument", "arguments_of", "summary_of"]

REQUIRED = inspect.Parameter.empty
"""Stands for the default of an argument that has none."""


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor.

    Attributes:
        name: as in the signature.
        annotation: its type, resolved; ``Any`` where there is none or it cannot be resolved.
        default: its default, or :data:`REQUIRED`.
        help: what the docstring says, on one line; empty if nothing.
    """

    name: str
    annotation: Any
    default: Any
    help: str


@cache
def arguments_of(cls: Any) -> Mapping[str, Argument]:
    """The named arguments of a class's constructor, in order.

    Args:
        cls: any class. What its own docstring does not explain is taken from those of its bases.

    Example:
        >>> from mtl_teleport import MajorityConflict
        >>> fraction = arguments_of(MajorityConflict)["fraction"]
        >>> fraction.annotation, fraction.default, fraction.help
        (<class 'float'>, 0.5, 'in (0, 1]; the paper uses one half and sweeps it in appendix figure 3.')
    """
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a class written in C may have no signature
        return {}
    scope = _scope(cls)
    said = _said(cls)
    return {
        name: Argument(name, _resolved(parameter.annotation, scope), parameter.default, said.get(name, ""))
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def summary_of(cls: Any) -> str:
    """The first line of a docstring as plain text.

    Example:
        >>> from mtl_teleport import LoRA
        >>> summary_of(LoRA)
        'Low-rank displacement of every weight with two or more dimensions.'
    """
    return _plain((inspect.getdoc(cls) or "").partition("\n")[0])


def _scope(cls: type) -> dict[str, Any]:
    """Where the names in the constructor's annotations are known."""
    made: Any = next((vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)), None)
    return inspect.unwrap(made).__globals__ if inspect.isfunction(made) else _module(cls)


def _module(cls: type) -> dict[str, Any]:
    module = sys.modules.get(cls.__module__)
    return {} if module is None else vars(module)


def _resolved(annotation: Any, scope: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        # One at a time: a name that is imported for type checkers only must not hide the types of the others.
        holder = SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(holder, globalns=scope, include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - an annotation may be any expression; without it the option is read by its default
        return Any


def _said(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        text = each.__doc__
        if text:
            parsed = docstring_parser.parse(inspect.cleandoc(text))
            found |= {p.arg_name: _plain(p.description or "") for p in parsed.params}
    return found


def _plain(text: str) -> str:
    """Docstring mark-up as a terminal shows it."""
    words = " ".join(text.split())
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", words).replace("``", "")
