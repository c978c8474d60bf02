"""The tables in docs/ say what the packages have and what the methods declare."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mtl_aggregators import make
from mtl_aggregators.__main__ import write_page
from mtl_aggregators.registry import own_methods
from mtl_benchmarks import published_values
from mtl_benchmarks.paper_figures import FIGURES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
WAY_OUT = "run: python -m mtl_aggregators --write docs/methods.md"


def tables() -> list[dict[str, list[str]]]:
    """The tables of docs/methods.md that begin with a method's name: name to the cells beside it."""
    found: list[dict[str, list[str]]] = []
    for table in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        found.append({row[0].strip("`"): row[1:] for row in rows})
    return found


@pytest.mark.parametrize("name", own_methods())
def test_every_method_is_described(name: str) -> None:
    described, facts, _ = tables()

    assert name in described, WAY_OUT
    assert described[name][0] == f"`{own_methods()[name].__name__}`"
    assert all(described[name])
    assert name in facts, WAY_OUT


def test_the_page_is_as_the_command_writes_it(tmp_path: Path) -> None:
    copy = tmp_path / PAGE.name
    shutil.copy(PAGE, copy)

    write_page(copy)

    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), WAY_OUT


def test_no_table_lists_what_is_not_there() -> None:
    for table in tables():
        assert set(table) <= set(own_methods())


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_a_paper_stands_on_its_page(name: str) -> None:
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(name)}: .*?(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    assert FIGURES[name].source in section
    assert f"$ {FIGURES[name].command}\n" in section
    assert f"$ mtl-bench figure {name} {FIGURES[name].papers_words}\n" in section
    (picture,) = re.findall(r"^!\[[^\]]+\]\((figures/papers/[^)]+)\)$", section, flags=re.MULTILINE)
    assert 0 < (ROOT / "docs" / picture).stat().st_size <= 80 * 1024


CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")


def test_choosing_sorts_methods_by_what_they_declare_to_need() -> None:
    rows = dict(re.findall(r"^\| (losses alone|three batches per step) \| (.*) \|$", CHOOSING, flags=re.MULTILINE))
    need = {name: make(name).facts.needs for name in own_methods()}

    for row, kind in (("losses alone", "losses"), ("three batches per step", "batches")):
        assert {name.lower() for name in re.findall(r"`(\w+)`", rows[row])} == {n for n in need if need[n] == kind}


def test_choosing_shows_printed_numbers_and_says_of_them_what_is_so() -> None:
    printed: dict[tuple[str, str], float] = {}
    names = {"IMTL": "IMTL-G", "Uncertainty": "UW", "FairGrad-R": "FairGrad"}
    for value in published_values():
        if value.paper == "COST" and value.metric == "DeltaM_pct" and value.table in ("Table 1", "Table 2", "Table 3"):
            printed[value.dataset, names.get(value.method, value.method)] = value.value
    (table,) = re.findall(r"^\| \| LS \|.*\n(?:\|.*\n)+", CHOOSING, flags=re.MULTILINE)
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    methods = head[1:]
    rows = {
        first.partition(",")[0]: dict(zip(methods, (float(cell.replace("−", "-")) for cell in cells), strict=True))
        for first, *cells in lines
    }

    assert set(rows) == {"NYUv2", "CityScapes", "CelebA", "QM9"}
    for dataset, row in rows.items():
        assert row == {method: printed[dataset, method] for method in methods}
        order = sorted(row, key=row.__getitem__)
        assert order[0] != "LS"
        assert "FairGrad" in order[:3]
        named = {"IMTL-G", "Nash-MTL", "FAMO"} - ({"Nash-MTL"} if dataset == "CelebA" else set())
        assert named <= set(order[:5])
    celeba = rows["CelebA"]
    assert sum(celeba["RLW"] < value for value in celeba.values()) > (len(celeba) - 1) / 2
