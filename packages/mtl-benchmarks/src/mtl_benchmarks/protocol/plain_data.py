"""Frozen dataclasses as plain data, for a file, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeVar

from mtl_benchmarks.components.reading import checked
from mtl_benchmarks.components.signatures import arguments_of
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError

__all__ = ["PlainData", "entry", "is_plain", "read_fields", "read_kind"]

T = TypeVar("T", bound="PlainData")


def is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, truth values, texts, None, and sequences and mappings of such.

    Example:
        >>> is_plain([0.9, 0.999]), is_plain(object())
        (True, False)
    """
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def _as_plain(value: Any) -> Any:
    if isinstance(value, PlainData):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _as_plain(each) for key, each in value.items()}
    return [_as_plain(each) for each in value] if isinstance(value, list | tuple) else value


class PlainData:
    """A frozen dataclass that is written to a file and read back.

    A class that is one of several in its place says which by ``kind``. A class with fields that are such objects
    themselves reads them back in its own ``from_dict``.
    """

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Make sure of the types, and let whole numbers be numbers where the type is that of such.

        So that one protocol has one form, however it was written. A class with checks of its own calls this after them.

        Raises:
            InvalidParameterError: a value is of another type.
        """
        cls: Any = type(self)
        for name, argument in arguments_of(cls).items():
            value = getattr(self, name)
            found = checked(name, argument.annotation, value)
            object.__setattr__(self, name, tuple(found) if isinstance(value, tuple) else found)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        own = {field.name: _as_plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind, **own} if self.kind else own

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """What :meth:`as_dict` gave; fields that are left out have their defaults.

        Raises:
            InvalidParameterError: it is no mapping, or a value is out of range.
            UnknownNameError: it has an entry that is not known.
        """
        return cls(**read_fields(cls, data))


@contextmanager
def entry(name: str) -> Iterator[None]:
    """Let errors say in which entry of a file they arose: ``training.optimizer: `lr` must be …``."""
    try:
        yield
    except InvalidInputError as error:
        within = re.match(r"[a-z_]+(\.[a-z_]+)*: ", str(error))
        error.args = (f"{name}{'.' if within else ': '}{error}",)
        raise


def read_fields(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a mapping that are fields of a class.

    Raises:
        InvalidParameterError: it is no mapping, or lacks a field that has no default.
        UnknownNameError: it has an entry that is no field.
    """
    if not isinstance(data, Mapping):
        wanted = ", ".join(field.name for field in fields(cls))
        raise InvalidParameterError(f"it must be a mapping with the entries {wanted}, got {data!r}.")
    known = [field.name for field in fields(cls)]
    own = {key: value for key, value in data.items() if key != "kind"}
    for key in own:
        if key not in known:
            raise UnknownNameError("entry", key, known)
    for each in fields(cls):
        if each.name not in own and each.default is MISSING and each.default_factory is MISSING:
            raise InvalidParameterError(f"`{each.name}` must be an entry, got {', '.join(own) or 'no entry'}.")
    return own


def read_kind(what: str, kinds: Sequence[type[T]], data: Any) -> Any:
    """An object of one of several classes, which ``data["kind"]`` names.

    Args:
        what: the entry's name, for messages.
        kinds: the classes.
        data: plain data.

    Raises:
        InvalidParameterError: it has no ``kind``.
        UnknownNameError: its ``kind`` is none of the classes'.
    """
    if not isinstance(data, Mapping) or "kind" not in data:
        raise InvalidParameterError(f"`{what}` must be a mapping with a `kind`, got {data!r}.")
    for cls in kinds:
        if cls.kind == data["kind"]:
            return cls.from_dict(data)
    raise UnknownNameError(what, str(data["kind"]), [cls.kind for cls in kinds])
