"""In what two configurations differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["differing"]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and (value or not prefix):
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first five options in which one configuration differs from another, in words, or nothing.

    Example:
        >>> differing({"method": {"name": "ls"}, "seed": 0}, {"method": {"name": "mgda"}, "seed": 0})
        "method.name: 'ls' there, 'mgda' here"
    """
    old, new = _flatten(dict(found)), _flatten(dict(wanted))
    # As texts, as their digests see them: 0, 0.0 and False are equal to Python, and NaN is not equal to itself.
    changed = [key for key in dict.fromkeys([*old, *new]) if repr(old.get(key, ...)) != repr(new.get(key, ...))]
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:5])
