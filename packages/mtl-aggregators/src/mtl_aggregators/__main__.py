"""``python -m mtl_aggregators`` prints the table of declared facts; ``... NAME`` describes one method.

``--write docs/methods.md`` brings that page up to date: facts are written anew between their marks, and a method
without a row in the table of methods gets one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mtl_aggregators.registry import describe, facts_table, methods_table, own_methods
from mtl_core import InvalidInputError

__all__ = ["main", "write_page"]

TABLES: dict[str, Callable[[str], str]] = {
    "methods": methods_table,
    "facts": lambda _: facts_table(own_methods()),
}
"""Mark → what stands there, from what stood there."""


def marks(name: str) -> tuple[str, str]:
    """The lines before and after a table of a page."""
    return f"<!-- {name}: python -m mtl_aggregators --write docs/methods.md -->\n", f"<!-- end of {name} -->\n"


def write_page(page: Path) -> None:
    """Bring the tables of a Markdown page up to date.

    Raises:
        InvalidInputError: the page cannot be read, or a mark is not in it.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"`--write` must name a Markdown page, got {str(page)!r}: {error}.") from error
    for name, table in TABLES.items():
        begin, end = marks(name)
        before, found, rest = text.partition(begin)
        known, closed, after = rest.partition(end)
        if not found or not closed:
            raise InvalidInputError(
                f"`--write` must name a page with the lines {begin.strip()!r} and {end.strip()!r}, got {str(page)!r} "
                "without one of them. Put them around the table."
            )
        text = before + begin + table(known) + end + after
    page.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(prog="python -m mtl_aggregators", description=__doc__)
    parser.add_argument("name", nargs="?", help="a method")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown page with the marks")
    options = parser.parse_args(arguments)
    try:
        if options.write is not None:
            write_page(options.write)
        else:
            print(facts_table() if options.name is None else describe(options.name) + "\n", end="")
    except InvalidInputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
