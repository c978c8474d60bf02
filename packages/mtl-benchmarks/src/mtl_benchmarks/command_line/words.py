"""The words of a command, told apart: which stand alone and which belong to an option."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from mtl_core import InvalidInputError

__all__ = ["HELP", "Words", "split"]

HELP = ("-h", "--help")
_NUMBER = re.compile(r"-(\d|\.\d|inf$|nan$)", re.IGNORECASE)


@dataclass
class Words:
    """What was typed.

    Attributes:
        standing: the words that belong to no option, in order.
        given: option → the words after it.
        help: whether help was asked for.
    """

    standing: list[str] = field(default_factory=list)
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    help: bool = False


def split(words: Sequence[str], *, many: Collection[str] = ()) -> Words:
    """Tell apart the words of a command.

    A word that begins with a hyphen, and is no negative number, names an option. The word after it, or what stands
    behind ``=``, is its value; an option of ``many`` takes all words up to the next option. What an option may be
    called, and whether a value is missing, is the business of the caller, who knows more than the words.

    Args:
        words: those after the command.
        many: options with several values.

    Raises:
        InvalidInputError: an option is given twice.

    Example:
        >>> found = split("digits --lr 0.1 --tasks left right --c=-1 --help".split(), many=["--tasks"])
        >>> found.standing, found.given, found.help
        (['digits'], {'--lr': ('0.1',), '--tasks': ('left', 'right'), '--c': ('-1',)}, True)
    """
    found = Words()
    option: str | None = None
    for word in words:
        if word in HELP:
            found.help, option = True, None
        elif word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
            name, equals, value = word.partition("=")
            if name in found.given:
                several = f": {name} with all its values behind it" if name in many else ""
                raise InvalidInputError(f"`{name}` must be given once, got it twice. Leave one of them out{several}.")
            found.given[name] = (value,) if equals else ()
            option = name if name in many or not equals else None
        elif option is None:
            found.standing.append(word)
        else:
            found.given[option] += (word,)
            option = option if option in many else None
    return found
