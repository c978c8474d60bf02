"""The saved state of methods: whose it is, and that it is taken whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from mtl_core.errors import InvalidInputError

__all__ = ["SavedState"]

_KEY = "_extra_state"
"""Under which torch saves what ``get_extra_state`` returns."""
_OWNER = "of"
"""Beside it, whose it is."""


class SavedState(nn.Module):
    """A module whose ``get_extra_state`` is a dictionary that ``state_dict()`` marks as its own.

    ``load_state_dict`` takes what a module of the same class has saved. A state of another class, with other entries or
    with values that are none of its is refused, and leaves the module as it was. Many methods remember a vector of
    weights and nothing else, so that one would go on from the other's without a word.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Go on from what a module of the same class, in the same place, has saved.

        Raises:
            InvalidInputError: it is the state of something else.
        """
        if not isinstance(state_dict, Mapping):
            raise self._refused(f"an object of type {type(state_dict).__name__}")
        before = self.state_dict()
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except (InvalidInputError, RuntimeError) as error:
            # Modules within may have taken theirs already.
            super().load_state_dict(before)
            if isinstance(error, InvalidInputError):
                raise
            raise self._refused(f"the entries {sorted(state_dict)}") from error  # torch gathers all that do not fit

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if prefix + _KEY in destination:
            destination[prefix + _KEY] = {_OWNER: type(self).__name__, **destination[prefix + _KEY]}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        found = state_dict.get(prefix + _KEY)
        if type(self).get_extra_state is not nn.Module.get_extra_state and prefix + _KEY in state_dict:
            before = self.get_extra_state()
            if not isinstance(found, Mapping) or _OWNER not in found:
                raise self._refused(sorted(found) if isinstance(found, Mapping) else type(found).__name__)
            if found[_OWNER] != type(self).__name__:
                raise self._refused(f"one of a {found[_OWNER]}")
            # Copies, as of parameters: whoever loads a state keeps it, and may load it twice.
            own = {name: copy.deepcopy(value) for name, value in found.items() if name != _OWNER}
            if own.keys() != before.keys():
                raise self._refused(f"one with {sorted(own)} in place of {sorted(before)}")
            try:
                self.set_extra_state(own)
            except InvalidInputError:
                self.set_extra_state(before)
                raise
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                self.set_extra_state(before)
                raise self._refused(f"one with values that do not fit: {error}") from error
            # Torch takes it too, by the same method: it must not meet the owner's name.
            state_dict = {**state_dict, prefix + _KEY: own}
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _described(self) -> str:
        """What it is, for messages."""
        return type(self).__name__

    def _refused(self, found: Any) -> InvalidInputError:
        return InvalidInputError(
            f"`state_dict` must be what state_dict() of a {self._described()} with these options returned, got "
            f"{found}. Nothing was loaded. Load it into a method like the one that it was saved from."
        )
