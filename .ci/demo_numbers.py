"""The README's numbers beside those of the demo's runs: ``python .ci/demo_numbers.py runs/demo``.

``--write`` brings the README up to date. The exit code says whether they agree; on another processor the last digits of
a trained network may differ.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- demo: python .ci/demo_numbers.py runs/demo --write -->\n", "<!-- end of demo -->\n"
# What a clock measured is not in the README.
_TIMES = ("training", "each")


def tables(markdown: str) -> list[list[list[str]]]:
    """The rows of cells of each table, without columns of times."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.M):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
        keep = [k for k, head in enumerate(rows[0]) if not head.startswith(_TIMES)]
        found.append([[row[k] for k in keep] for row in rows])
    return found


def block(runs: str) -> str:
    """What the README says of the runs."""
    asked = [sys.executable, "-m", "mtl_benchmarks", "compare", runs, "--format", "markdown"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    measures, _, moves = tables(printed)
    shown = [row for row in measures if not row[0].startswith("single")]
    return "\n".join("\n".join("| " + " | ".join(row) + " |" for row in table) + "\n" for table in (shown, moves))


def said(readme: str) -> str:
    """What stands in the README now.

    Raises:
        SystemExit: the marks are not there.
    """
    _, found, rest = readme.partition(BEGIN)
    inside, closed, _ = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"demo_numbers: README.md must have the lines {BEGIN.strip()!r} and {END.strip()!r}.")
    return inside


def main() -> int:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", help="the directory that the demo wrote")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    old, new = said(text), block(options.runs)
    if options.write:
        README.write_text(text.replace(BEGIN + old + END, BEGIN + new + END), encoding="utf-8")
        return 0
    if old == new:
        print("README.md says what this run measured.")
        return 0
    print("README.md says otherwise; this run measured:\n\n" + new)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
