"""From words to values, by the type that a signature declares.

One place for every option of the command line: what a word means depends on the type alone, and what is wrong with it
is said in the same words everywhere.
"""

from __future__ import annotations

import functools
import operator
import re
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union

from mtl_core import InvalidParameterError

__all__ = ["checked", "conform", "expected", "is_plain_type", "placeholder", "read_any", "read_value", "takes_paths"]

_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable, Collection)
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = ("none", "null")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")


class _NotThis(Exception):
    """A word is no value of one of the types in question."""


def read_value(name: str, annotation: Any, text: str) -> Any:
    """The value of an option.

    Args:
        name: of the option, for the error: ``"--method.alpha"``.
        annotation: its type. Numbers, texts, ``true`` and ``false``, ``none``, fixed words (``Literal``), paths and
            sequences of these are read; of a union the first kind that fits, texts last. Where nothing of this is
            declared, the word decides.
        text: the word.

    Raises:
        InvalidParameterError: the word is none of these.

    Example:
        >>> read_value("--lr", float | None, "1e-3"), read_value("--lr", float | None, "none")
        (0.001, None)
        >>> read_value("--lengths", float | list[float], "0.1,0.2")
        [0.1, 0.2]
        >>> read_value("--epochs", int, "two")
        Traceback (most recent call last):
        mtl_core.errors.InvalidParameterError: `--epochs` must be a whole number, got 'two'.
    """
    kinds = _kinds(annotation)
    if not kinds:
        raise InvalidParameterError(f"`{name}` must be given in Python, got {text!r}. It is no plain value.")
    try:
        return _read(kinds, text)
    except _NotThis:
        raise InvalidParameterError(f"`{name}` must be {expected(annotation)}, got {text!r}.") from None


def read_any(text: str) -> Any:
    """The value that a word looks like: none, true, false, a number, a list in brackets, or the text itself.

    Example:
        >>> [read_any(word) for word in ("none", "3", "1e-3", "[1, a]", "left")]
        [None, 3, 0.001, [1, 'a'], 'left']
    """
    if text.strip().startswith("["):
        return [read_any(word) for word in _elements(text)]
    for kind in (None, int, float):
        try:
            return _read_one(kind, text, alone=False)
        except _NotThis:
            continue
    lowered = text.lower()
    return lowered == "true" if lowered in ("true", "false") else text


def expected(annotation: Any) -> str:
    """A type in words: ``"a number or none"``."""
    return " or ".join(dict.fromkeys(_in_words(kind) for kind in _kinds(annotation))) or "an object"


def placeholder(annotation: Any) -> str:
    """A type as help shows it behind an option: ``"NUMBER"``."""
    return "|".join(dict.fromkeys(_short(kind) for kind in _kinds(annotation) if kind is not None)) or "VALUE"


def conform(annotation: Any, value: Any) -> Any:
    """A value as its type has it: a whole number where the type is that of other numbers becomes one of these.

    So that a configuration does not depend on whether somebody wrote 2 or 2.0.

    Example:
        >>> conform(float | None, 2), conform(int | float, 2), conform(list[float], [1, 0.5])
        (2.0, 2, [1.0, 0.5])
    """
    kinds = _kinds(annotation)
    if isinstance(value, list | tuple):
        inner = next((kind for kind in kinds if _is_sequence(kind)), None)
        element = _element(inner) if inner is not None else Any
        return [conform(element, each) for each in value]
    # `type` and not `isinstance`: True is an int, too. A fixed word that is a whole number, as in `float | Literal[0]`,
    # stays one.
    if type(value) is int and float in kinds and int not in kinds and not _holds_literal(kinds, value):
        with suppress(OverflowError):  # one of hundreds of digits is no such number, and stays what it is
            return float(value)
    return str(value) if isinstance(value, Path) else value


def checked(name: str, annotation: Any, value: Any) -> Any:
    """A value that is of its type, as :func:`conform` gives it.

    Args:
        name: of the option, for the error.
        annotation: its type.
        value: as a file or a caller has it.

    Raises:
        InvalidParameterError: it is of another type: a text or a truth value is no number.

    Example:
        >>> checked("max_norm", float | None, 1)
        1.0
        >>> checked("max_norm", float | None, "1")
        Traceback (most recent call last):
        mtl_core.errors.InvalidParameterError: `max_norm` must be a number or none, got '1'.
    """
    found = conform(annotation, value)
    if not _fits(annotation, found):
        kinds = sorted(_alternatives(annotation), key=lambda kind: kind is None)
        # Tensors and the like, which may stand beside numbers, cannot be written down.
        plain = [kind for kind in kinds if kind in _kinds(annotation)]
        words = [_in_words(kind) for kind in (plain if any(kind is not None for kind in plain) else kinds)]
        raise InvalidParameterError(f"`{name}` must be {' or '.join(dict.fromkeys(words))}, got {value!r}.")
    return found


def is_plain_type(annotation: Any) -> bool:
    """Whether a type is made of plain values, so that a plain value either is of it or is not.

    Tensors may stand beside them: no plain value is one.
    """
    written = [kind for kind in _alternatives(annotation) if getattr(kind, "__module__", None) != "torch"]
    return bool(written) and len(_kinds(annotation)) == len(dict.fromkeys(map(str, written)))


def _fits(annotation: Any, value: Any) -> bool:
    return any(_fits_one(kind, value) for kind in _alternatives(annotation))


def _fits_one(kind: Any, value: Any) -> bool:
    if kind is None or kind is Any:
        return kind is Any or value is None
    if _is_literal(kind):
        return any(value == each and type(value) is type(each) for each in typing.get_args(kind))
    if _is_sequence(kind):
        return isinstance(value, list) and all(_fits(_element(kind), each) for each in value)
    if kind is int:
        return type(value) is int  # True is one to Python
    if isinstance(kind, type):
        return isinstance(value, str if kind is Path else kind)
    return True  # a callable, a mapping of something: for whoever takes it to say


def takes_paths(annotation: Any) -> bool:
    """Whether a type is that of a path, which is kept as a text."""
    kinds = _kinds(annotation)
    return Path in kinds and str not in kinds


def _kinds(annotation: Any) -> list[Any]:
    """The readable alternatives of a type, in the order in which they are tried."""
    found: list[Any] = []
    for kind in _alternatives(annotation):
        readable = kind in (None, bool, int, float, str, Path, Any) or _is_sequence(kind) or _is_literal(kind)
        if readable and kind not in found:
            found.append(kind)
    return sorted(found, key=_rank)


def _alternatives(annotation: Any) -> list[Any]:
    if isinstance(annotation, typing.TypeVar):
        return [Any]
    if type(annotation).__name__ == "TypeAliasType":  # `type Name = ...`, since Python 3.12
        return _alternatives(annotation.__value__)
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for each in typing.get_args(annotation) for kind in _alternatives(each)]
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    return [None if annotation is type(None) else annotation]


def _rank(kind: Any) -> int:
    if kind is None:
        return 0
    if _is_literal(kind):
        return 1
    order: tuple[Any, ...] = (bool, int, float)
    if kind in order:
        return 2 + order.index(kind)
    # Texts last but for `Any`: every word is a text, so that nothing behind it would be tried.
    return 5 if _is_sequence(kind) else 7 if kind is Any else 6


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _is_sequence(kind: Any) -> bool:
    return kind in _SEQUENCES or typing.get_origin(kind) in _SEQUENCES


def _holds_literal(kinds: Iterable[Any], value: Any) -> bool:
    return any(_is_literal(kind) and value in typing.get_args(kind) for kind in kinds)


def _element(kind: Any) -> Any:
    """The type of a sequence's elements; of a tuple of fixed length that of all of them together."""
    arguments = [each for each in typing.get_args(kind) if each is not Ellipsis]
    return functools.reduce(operator.or_, arguments) if arguments else Any


def _read(kinds: Sequence[Any], text: str) -> Any:
    for kind in kinds:
        try:
            return _read_one(kind, text, alone=len([k for k in kinds if k is not None]) == 1)
        except _NotThis:
            continue
    raise _NotThis


def _read_one(kind: Any, text: str, *, alone: bool) -> Any:
    word = text.strip()
    if kind is None and word.lower() in _NONE:
        return None
    if kind is bool and word.lower() in _BOOLEANS:
        return _BOOLEANS[word.lower()]
    if kind is int and _WHOLE.fullmatch(word):
        return int(word)
    if kind is float and _NUMBER.fullmatch(word):
        return float(word)
    if _is_literal(kind):
        for value in typing.get_args(kind):
            if word == str(value):
                return value
    # Where a single value may stand as well, a word is a list only if it looks like one.
    if _is_sequence(kind) and (alone or "," in word or word.startswith(("[", "("))):
        inner = _kinds(_element(kind))
        return [_read(inner, each) for each in _elements(text)]
    if kind in (str, Path):
        return text
    if kind is Any:
        return read_any(text)
    raise _NotThis


def _elements(text: str) -> list[str]:
    word = text.strip()
    for opening, closing in ("[]", "()"):
        if word.startswith(opening):
            if not word.endswith(closing):
                raise _NotThis
            word = word[1:-1]
    return [each.strip().strip("'\"") for each in word.split(",") if each.strip()]


def _in_words(kind: Any) -> str:
    if _is_literal(kind):
        values = [str(value) for value in typing.get_args(kind)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if _is_sequence(kind):
        inner = " or ".join(dict.fromkeys(_in_words(each) for each in _kinds(_element(kind))))
        return f"a list with commas, each {inner}"
    named = {None: "none", bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    if kind in named or kind is Path:
        return named.get(kind, "a path")
    return f"a {kind.__name__}" if isinstance(kind, type) else "a value"


def _short(kind: Any) -> str:
    if _is_literal(kind):
        return "|".join(str(value) for value in typing.get_args(kind))
    if _is_sequence(kind):
        return "|".join(dict.fromkeys(_short(each) for each in _kinds(_element(kind)))) + ",…"
    return {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}.get(kind, "VALUE")
