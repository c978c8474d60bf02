"""``python -m mtl_aggregators`` prints the table of declared facts; ``... NAME`` describes one method.

With ``--into FILE`` the table replaces the one that stands between the marks in a Markdown file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mtl_aggregators.registry import describe, facts_table

BEGIN, END = "<!-- facts: written by python -m mtl_aggregators --into -->\n", "<!-- end of facts -->\n"


def main(arguments: list[str] | None = None) -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(prog="python -m mtl_aggregators", description=__doc__)
    parser.add_argument("name", nargs="?", help="a method")
    parser.add_argument("--into", type=Path, help="a Markdown file with the marks")
    options = parser.parse_args(arguments)
    if options.name is not None:
        print(describe(options.name))
    elif options.into is None:
        print(facts_table(), end="")
    else:
        before, _, rest = options.into.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        options.into.write_text(before + BEGIN + facts_table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
