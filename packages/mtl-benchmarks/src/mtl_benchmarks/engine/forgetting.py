"""Methods that keep something from step to step and cannot be asked for it, so that no checkpoint has it."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

from mtl_core.extension import Draws, Remembers, Wrapper, offers

__all__ = ["Unsaved"]


class Unsaved:
    """Looks for attributes of a method that change from step to step and are part of no checkpoint.

    A method with ``state_dict`` is taken at its word. What cannot be pickled is not looked at.

    Args:
        method: as it was made, before a step.
    """

    def __init__(self, method: Any) -> None:
        while isinstance(method, Wrapper):
            method = method.method
        self._method = method
        self._before = {} if offers(method, Remembers) else _digests(method)

    @property
    def name(self) -> str:
        """Of the method's class."""
        return type(self._method).__name__

    def found(self) -> list[str]:
        """Names of the attributes that have changed since then."""
        if offers(self._method, Remembers):
            return []
        return [name for name, now in _digests(self._method).items() if self._before.get(name) != now]


def _digests(method: Any) -> dict[str, str]:
    if not hasattr(method, "__dict__"):
        return {}
    # Its generator is saved for it.
    own = {name: value for name, value in vars(method).items() if not (name == "generator" and offers(method, Draws))}
    return {name: digest for name, value in own.items() if (digest := _digest(value)) is not None}


def _digest(value: Any) -> str | None:
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # noqa: BLE001 - an object of others may raise anything when it is pickled
        return None
