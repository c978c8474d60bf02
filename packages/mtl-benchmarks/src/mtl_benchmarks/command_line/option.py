"""Options of commands: what they are called, what they take, and how their words become values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl_benchmarks.components.reading import placeholder, read_value
from mtl_benchmarks.components.signatures import REQUIRED
from mtl_core import InvalidInputError, UnknownNameError

__all__ = ["Option", "read_options", "refuse_unknown"]


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        flag: as it is typed: ``"--method.alpha"``.
        annotation: the type of its value, or of each of its values.
        help: what it does, on one line.
        default: what help shows; ``REQUIRED`` where it must be given, None where there is nothing to show.
        many: whether it takes several words.
        as_typed: whether these are handed on as one text, with commas between them.
        shown: what stands for the value in help; empty: by its type.
        names: the values that a shell offers.
        path: whether a shell offers files.
        reads: makes the value from flag and word where the type does not say how.
        hidden: whether help leaves it out.
    """

    flag: str
    annotation: Any
    help: str
    default: Any = None
    many: bool = False
    as_typed: bool = False
    shown: str = ""
    names: Callable[[], Sequence[str]] | None = None
    path: bool = False
    reads: Callable[[str, str], Any] | None = None
    hidden: bool = False

    @property
    def usage(self) -> str:
        """The flag with what stands for its value."""
        shown = self.shown or placeholder(self.annotation)
        return f"{self.flag} {shown}{'…' if self.many and not shown.endswith('…') else ''}"

    def read(self, words: Sequence[str]) -> Any:
        """The value behind the flag: one, or a tuple where the option takes many.

        Raises:
            InvalidInputError: there is no value, or it is none of this type.
        """
        if self.as_typed:
            return ",".join(words)
        if self.many:
            listed = [part for word in words for part in _separate(word)]
            if not listed:
                raise InvalidInputError(f"`{self.flag}` must be followed by at least one value, got none.")
            return tuple(read_value(self.flag, self.annotation, part) for part in listed)
        if not words:
            raise InvalidInputError(f"`{self.flag}` must be followed by a value, got none: {self.usage}.")
        if self.reads is not None:
            return self.reads(self.flag, words[0])
        return read_value(self.flag, self.annotation, words[0])


def _separate(word: str) -> list[str]:
    """``left,right`` or ``[left, right]`` is as good as two words, but not within ``cagrad:c=0.5,rescale=none``."""
    if ":" in word and "=" in word:
        return [word]
    return [part.strip().strip("'\"") for part in word.strip("[]()").split(",") if part.strip()]


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that does not exist.

    Raises:
        UnknownNameError: names those that are spelt alike; lists those of the same kind.
    """
    flags = list(known)
    for flag in given:
        if flag not in flags:
            group = flag.rpartition(".")[0]
            alike = [each for each in flags if each.rpartition(".")[0] == group]
            raise UnknownNameError("option", flag, alike or flags)


def read_options(given: Mapping[str, Sequence[str]], options: Iterable[Option]) -> dict[str, Any]:
    """Flag → value, for the options that were given.

    Raises:
        UnknownNameError: one that does not exist.
        InvalidInputError: a value is missing or of another type, or an option without default is.
    """
    table = {option.flag: option for option in options}
    refuse_unknown(given, table)
    values = {flag: table[flag].read(words) for flag, words in given.items()}
    for option in table.values():
        if option.default is REQUIRED and option.flag not in values:
            raise InvalidInputError(f"`{option.flag}` must be given, got no value for it: {option.usage}.")
    return values
