"""What a command is: its words, its options and what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl_benchmarks.command_line.help_text import layout
from mtl_benchmarks.command_line.option import Option, read_options
from mtl_benchmarks.command_line.words import split
from mtl_core import InvalidInputError

__all__ = ["Command", "Parsed"]


@dataclass(frozen=True)
class Parsed:
    """The words of a command, read.

    Attributes:
        standing: those that belong to no option.
        values: flag → value, of the options that were given.
    """

    standing: tuple[str, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """One command of ``mtl-bench``.

    Attributes:
        name: the word that calls it.
        usage: what follows that word.
        summary: what it does, on one line.
        run: gets the words after the name.
        options: those that do not depend on other words.
        standing: the values that a shell offers for the first word that belongs to no option.
        takes_paths: whether such words are paths.
        examples: whole command lines.
        offered: the options that a shell offers, where these are more than :attr:`options`.
    """

    name: str
    usage: str
    summary: str
    run: Callable[[Sequence[str]], None]
    options: tuple[Option, ...] = ()
    standing: Callable[[], Sequence[str]] | None = None
    takes_paths: bool = False
    examples: tuple[str, ...] = ()
    offered: Callable[[], Sequence[Option]] | None = None

    def parse(self, words: Sequence[str], *, at_least: int = 0, at_most: int | None = 0) -> Parsed | None:
        """The words, read by :attr:`options`; None if help was asked for and printed.

        Args:
            words: those after the command's name.
            at_least: how many words that belong to no option there must be.
            at_most: how many there may be; None for any number.

        Raises:
            InvalidInputError: a word too many or too few, or a value that is none.
            UnknownNameError: an option that does not exist.
        """
        found = split(words, many=[option.flag for option in self.options if option.many])
        if found.help:
            print(self.help(), end="")
            return None
        values = read_options(found.given, self.options)
        n_words = len(found.standing)
        if n_words < at_least or (at_most is not None and n_words > at_most):
            rule = "stand without further words" if at_most == 0 else f"be used as mtl-bench {self.name} {self.usage}"
            hint = f" For example: {self.examples[0]}" if self.examples else ""
            raise InvalidInputError(f"`{self.name}` must {rule}, got {' '.join(found.standing) or 'no word'}.{hint}")
        return Parsed(tuple(found.standing), values)

    def help(self) -> str:
        """The text of ``--help``."""
        return layout(
            f"mtl-bench {self.name} {self.usage}",
            about=self.summary,
            examples=self.examples,
            groups={"options": self.options},
        )
