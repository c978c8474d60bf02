"""What a result holds, for those that other programs or other versions have written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtl_core import ResultsDirectoryError

__all__ = ["refuse_other_entries"]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_of(value: Any, each: Callable[[Any], bool]) -> bool:
    # Names are texts wherever JSON has them.
    return isinstance(value, Mapping) and all(map(each, value.values()))


_ENTRIES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "run": ("a text", _is_text),
    "config": ("a text", _is_text),
    "values": ("a number by metric", lambda value: _is_of(value, _is_number)),
    "seconds": ("a number", _is_number),
    "checkpoint": ("a text or null", lambda value: value is None or _is_text(value)),
    "notes": ("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value))),
    "tables": ("a digest by file", lambda value: _is_of(value, _is_text)),
}
"""What is read of a result: name, in words, and whether a value is that."""


def refuse_other_entries(result: Mapping[str, Any], path: Path) -> None:
    """Refuse a result that has not what is read of it, though its digest is right.

    Args:
        result: what the file holds.
        path: of the file.

    Raises:
        ResultsDirectoryError: an entry is missing or something else; the text names it.
    """
    for name, (words, is_right) in _ENTRIES.items():
        if name in result and is_right(result[name]):
            continue
        found = f"{result[name]!r}"[:60] if name in result else "none"
        raise ResultsDirectoryError(
            f"`{path.name}` in {str(path.parent)!r} must have {words} as `{name}`, got {found}. Read it with the "
            "version that wrote it, or move it away and give the command of this run again."
        )
