"""What a method or teleport is called: its name, with the options in which it is not as it is by default.

By what is built and not by what was typed: ``cagrad``, ``CAGrad`` and ``cagrad:c=0.4`` are one method, as its ``c`` is
0.4 by default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from mtl_benchmarks.components.options import Choice, PartTable, option_defaults
from mtl_benchmarks.components.signatures import REQUIRED
from mtl_benchmarks.configuration.making import PARTS, method_class, resolve_method, resolve_teleport, teleport_class

__all__ = ["by_label", "method_label", "teleport_label"]


def method_label(choice: Choice) -> str:
    """The label of a method.

    Raises:
        UnknownNameError: a method or option that does not exist.

    Example:
        >>> [method_label(Choice("CAGrad", options)) for options in ({}, {"c": 0.4}, {"c": 1})]
        ['cagrad', 'cagrad', 'cagrad (c 1.0)']
    """
    return _label(resolve_method(choice), resolve_method, option_defaults(method_class(choice.name)), {})


def teleport_label(choice: Choice, benchmark: Choice) -> str:
    """The label of a teleport on a benchmark, whose defaults for it are left out.

    Raises:
        UnknownNameError: a teleport or option that does not exist.

    Example:
        >>> trigger = Choice("majority", {"fraction": 0.75})
        >>> teleport_label(Choice("cost", {"htr": "keep", "trigger": trigger}), Choice("digits"))
        'cost (trigger majority, trigger.fraction 0.75)'
    """
    known = option_defaults(teleport_class(choice.name), PARTS)
    return _label(resolve_teleport(choice, benchmark), lambda each: resolve_teleport(each, benchmark), known, PARTS)


def _label(resolved: Choice, resolve: Callable[[Choice], Choice], known: dict[str, Any], parts: PartTable) -> str:
    required = {name: resolved.options[name] for name, value in known.items() if value is REQUIRED}
    usual = resolve(Choice(resolved.name, required))
    shown = ", ".join(_differing(resolved, usual, required, parts))
    return f"{resolved.name} ({shown})" if shown else resolved.name


def _differing(choice: Choice, usual: Choice, required: Collection[str], parts: PartTable) -> Iterator[str]:
    for name, value in choice.options.items():
        before = usual.options[name]
        if not isinstance(value, Choice):
            # As texts: 1, 1.0 and True are equal to Python.
            if name in required or repr(value) != repr(before):
                yield f"{name} {_shown(value)}"
            continue
        if value.name != before.name:
            yield f"{name} {value.name}"
            before = Choice(value.name, option_defaults(parts[name].find(value.name), given=parts[name].provided))
        for inner, own in value.options.items():
            if repr(own) != repr(before.options.get(inner, REQUIRED)):
                yield f"{name}.{inner} {_shown(own)}"


def _shown(value: Any) -> str:
    """A value such that other values are shown otherwise; words plainly, other texts in quotes."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.*:/-]*", value)
    return str(value) if is_word and value not in ("None", "True", "False", "nan", "inf") else repr(value)


def by_label(
    what: str, choices: Sequence[Choice], label: Callable[[Choice], str], say: Callable[[str], None]
) -> dict[str, Choice]:
    """Label → choice, each once.

    Args:
        what: they are, for what is said of those that are named several times: ``"methods"``.
        choices: as they were given.
        label: of one.
        say: called with what is left out.
    """
    found: dict[str, Choice] = {}
    names = [label(choice) for choice in choices]
    for name, choice in zip(names, choices, strict=True):
        found.setdefault(name, choice)
    for name in found:
        if names.count(name) > 1:
            say(f"{what}: {name} is named {names.count(name)} times and counts once")
    return found
