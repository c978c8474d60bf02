"""Classes by name: those of this package, and those that other packages bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mtl_core import InvalidInputError
from mtl_core.extension import find_plugin, is_spec, plain_name, plugin_names

__all__ = ["Registry", "defines"]


def defines(cls: type, method: str) -> bool:
    """Whether a class or one of its bases defines a method of that name."""
    return any(method in vars(each) for each in cls.__mro__)


@dataclass(frozen=True)
class Registry:
    """The classes of one kind.

    Args:
        kind: what they are, for messages: ``"adapter"``.
        group: the entry points' group under which other packages bring some.
        own: name → class, for those of this package.
        fits: whether a class may stand here.
        rule: what a class must be, for the message where it does not fit.
        reserved: names that are taken though no class has them.

    Example:
        >>> from fractions import Fraction
        >>> numbers = Registry("number", "mtl.numbers", {"half-size": Fraction})
        >>> numbers.find("HALF_SIZE").__name__, numbers.find("fractions:Fraction").__name__, numbers.names()
        ('Fraction', 'Fraction', ['half-size'])
    """

    kind: str
    group: str
    own: Mapping[str, type]
    fits: Callable[[type], bool] = lambda cls: True
    rule: str = "a class"
    reserved: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Names of all classes: of this package, then of those that bring some; nothing is imported."""
        known = {plain_name(name) for name in self.own}
        return [*self.own, *(name for name in plugin_names(self.group) if name not in known)]

    def find(self, name: str) -> type:
        """The class of a name in any spelling, or of ``package.module:Class``.

        Raises:
            UnknownNameError: there is none; lists those that exist.
            InvalidInputError: another package brings it, and it cannot be imported or is nothing that may stand here.
        """
        if not is_spec(name):
            for known, cls in self.own.items():
                if plain_name(known) == plain_name(name):
                    return cls
        found: Any = find_plugin(self.kind, name, self.group, [*self.own, *self.reserved])
        if not isinstance(found, type) or not self.fits(found):
            raise InvalidInputError(f"{self.kind} {name!r} must be {self.rule}, got {found!r}.")
        return found

    def name_of(self, name: str, cls: type) -> str:
        """One name for one class, so that a run is the same however its parts were spelt."""
        for known, each in self.own.items():
            if each is cls:
                return known
        return name if is_spec(name) else plain_name(name)
