"""The tables in docs/ say what the packages have and what the methods declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mtl_aggregators
from mtl_aggregators.__main__ import BEGIN, END
from mtl_aggregators.registry import facts_table

ROOT = Path(__file__).parents[1]


def tables() -> list[dict[str, list[str]]]:
    """The tables of docs/methods.md that begin with a method's name: name to the cells beside it."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    found: list[dict[str, list[str]]] = []
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        found.append({row[0].strip("`"): row[1:] for row in rows})
    return found


@pytest.mark.parametrize("name", mtl_aggregators.available())
def test_every_method_is_described(name: str) -> None:
    described, _, _ = tables()

    assert described[name][0] == f"`{type(mtl_aggregators.make(name)).__name__}`"


def test_facts_are_those_declared() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(BEGIN)
    written, _, _ = rest.partition(END)

    assert written == facts_table(), "run `python -m mtl_aggregators --into docs/methods.md`"


def test_no_table_lists_what_is_not_there() -> None:
    for table in tables():
        assert set(table) <= set(mtl_aggregators.available())
