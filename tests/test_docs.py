"""The tables in docs/ say what the packages have and what the methods declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mtl_aggregators

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


@pytest.mark.parametrize("name", mtl_aggregators.available())
def test_facts_are_those_declared(name: str) -> None:
    _, declared, _ = tables()
    facts = mtl_aggregators.make(name).facts

    degree = "none" if facts.homogeneity is None else f"{facts.homogeneity:g}"
    assert declared[name] == [
        facts.needs,
        degree,
        facts.scale.formula,
        facts.paper_scale.formula,
        facts.paper_heads,
    ]


def test_no_table_lists_what_is_not_there() -> None:
    for table in tables():
        assert set(table) <= set(mtl_aggregators.available())
