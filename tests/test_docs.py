"""The tables in docs/ say what the packages have and what the methods declare; names and commands on pages exist."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import mtl_aggregators
from mtl_aggregators import make
from mtl_aggregators.__main__ import write_page
from mtl_aggregators.registry import own_methods
from mtl_benchmarks import published_values
from mtl_benchmarks.benchmarks import available as benchmarks
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.cli import main
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


def test_the_first_screen_of_the_readme_is_true() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")

    assert re.findall(r"(\d+) methods", first) == [str(len(own_methods()))]
    ((gain, wide),) = re.findall(r"takes ([\d.]+) ±([\d.]+) points of \[Δm\]", first)
    ((less, half),) = re.findall(
        r"^\| FairGrad, α = 2 \| [^|]+ \| −([\d.]+) ±([\d.]+) \|", evidence, flags=re.MULTILINE
    )
    assert (float(gain), float(wide)) == (round(float(less), 1), round(float(half), 1))
    (code,) = re.findall(r"^```py\n(.*?)^```$", first, flags=re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) == 3
    assert first.count("![") == 1
    assert len(re.findall(r"^\$ ", first, flags=re.MULTILINE)) == 2


# Those that are released: a method that is being written has its file, its test and its row in docs/methods.md.
@pytest.mark.parametrize("name", [n for n, cls in own_methods().items() if cls.__name__ in mtl_aggregators.__all__])
def test_the_readme_lists_the_parameters_of_a_method(name: str) -> None:
    text = (ROOT / "packages" / "mtl-aggregators" / "README.md").read_text(encoding="utf-8")
    cls = own_methods()[name]
    (last,) = re.findall(rf"^\| `{cls.__name__}` \| .* \| ([^|]+) \|$", text, flags=re.MULTILINE)

    assert re.findall(r"`(\w+)`", last) == [each for each in inspect.signature(cls).parameters if each != "backend"]


def test_the_readme_lists_the_benchmarks() -> None:
    text = (ROOT / "packages" / "mtl-benchmarks" / "README.md").read_text(encoding="utf-8")
    table = text.partition("\n## The benchmarks\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", table, flags=re.MULTILINE))

    assert {name: int(count) for name, count in rows.items()} == {
        name: len(benchmark_class(name).tasks) for name in benchmarks()
    }


@pytest.mark.parametrize("name", benchmarks())
def test_a_benchmark_has_a_section_with_its_command(name: str) -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    commands = re.findall(rf"^\$ mtl-bench run {name}\b.*$", text, flags=re.MULTILINE)

    assert commands
    assert text.rpartition(commands[0])[0].count("\n## ") > 1


# --- names and commands on all pages ----------------------------------------------------------------------------------

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("docs/tutorials/*.py")),
]
MODULES = ("mtl_core", "mtl_core.extension", "mtl_core.checks", "mtl_core.testing", "mtl_aggregators",
           "mtl_aggregators.conformance", "mtl_teleport", "mtl_benchmarks", "mtl_benchmarks.models")  # fmt: skip


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def exists(dotted: str) -> bool:
    """Whether a dotted name leads to something that can be imported."""
    parts = dotted.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:k]))
        except ImportError:
            continue
        for part in parts[k:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_dotted_names_lead_somewhere(page: Path) -> None:
    packages = "mtl_(?:core|aggregators|teleport|benchmarks)"
    named = set(re.findall(rf"\b({packages}(?:\.[A-Za-z_]\w*)+)", page.read_text(encoding="utf-8")))

    assert [dotted for dotted in sorted(named) if not exists(dotted)] == []


def public() -> dict[str, Any]:
    """Public name → what it is; of the same name in two modules, the one that users import first."""
    found: dict[str, Any] = {}
    for module in map(importlib.import_module, reversed(MODULES)):
        found |= {each: getattr(module, each) for each in module.__all__}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_that_pages_name_exist(page: Path) -> None:
    """Calls of public names in prose, tables and blocks that are not run have keywords that the names take."""
    text, names = page.read_text(encoding="utf-8"), public()
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^ *```py\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    wrong = []
    for code in [*re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose), *shown]:
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
            if called not in names or called == "make" or not callable(names[called]):
                continue
            takes = inspect.signature(names[called]).parameters
            wrong += [f"{called}({key.arg}=)" for key in call.keywords if key.arg and key.arg not in takes]

    assert wrong == []


COMMAND = re.compile(r"(?:^(?:# )?\$ |^|`)(?:python -m mtl_benchmarks|mtl-bench) ([a-z][^`\n]*)", re.MULTILINE)
# Stand for a name of the reader's, for a file of theirs, or for something left out.
PLACEHOLDER = re.compile(r"\b(?:mine|ways|equal):|\b(?:NAME|BENCHMARK|FILE)\b|…|--config|inversenorm|--method$")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `mtl-bench` of a page with its options, asked for help: then options are read and nothing is run."""
    monkeypatch.chdir(tmp_path)
    refused = []
    for words in dict.fromkeys(COMMAND.findall(page.read_text(encoding="utf-8").replace("\\\n", ""))):
        line = re.split(r" #|  ", words)[0].strip()
        said = io.StringIO()
        if not PLACEHOLDER.search(line):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                code = main([*line.split(), "--help"])
            refused += [f"{line}: {said.getvalue()}"] if code else []

    assert refused == []
