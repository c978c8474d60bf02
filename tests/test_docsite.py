"""What the documentation site is made of: pages of methods, tutorials, links between files, the reference."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "Agg")

from docsite import computed, method_page, reference, repository, tutorials  # noqa: E402
from docsite.docstrings import as_markdown, public_modules  # noqa: E402
from docsite.measured import behaviour, passes  # noqa: E402
from docsite.pictures import CONCEPTS, heat_map, svg  # noqa: E402
from mtl_aggregators import make  # noqa: E402
from mtl_aggregators.registry import own_methods  # noqa: E402

TUTORIALS = tutorials.tutorials(ROOT / "docs" / "tutorials")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What examples write is written to a folder that goes."""
    monkeypatch.chdir(tmp_path)


def blocks(page: str) -> list[str]:
    return [part.partition("```")[0] for part in page.split("```python\n")[1:]]


@pytest.mark.parametrize("name", own_methods())
def test_the_code_on_the_page_of_a_method_runs(name: str) -> None:
    page = method_page.method_page(name)
    namespace: dict[str, object] = {"__name__": "__page__"}

    for block in blocks(page):
        exec(block, namespace)

    assert f"# {own_methods()[name].__name__}" in page
    assert "report" in namespace
    for part in ("**The update**: ", "| Paper | ", "| Backward passes per step | ", "](../pictures/methods/"):
        assert part in page
    for heading in ("When to take it", "When it fails", "What it costs", "A step", "Reference"):
        assert f"\n## {heading}\n" in page
    if ".. math::" in (own_methods()[name].__doc__ or ""):  # the formula stands at the head, before the facts
        assert -1 < page.find("\n\\[") < page.find("| Paper | ")


@pytest.mark.parametrize("name", own_methods())
def test_a_method_has_a_formula_and_a_source(name: str) -> None:
    cls = own_methods()[name]
    text = cls.__doc__ or ""

    assert ":math:" in text or ".. math::" in text
    assert "References:" in text or method_page.cells("methods.md", 0)[name][2] == "baseline"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path) -> None:
    if "molecules" in path.stem and find_spec("qm9pack") is None:
        pytest.skip("the package qm9pack is not installed; `nox -s docs` installs it and runs this tutorial")
    found = computed.tutorial(path)  # kept, so that the site need not run it again

    page = found.pop(f"tutorials/{path.stem}.md")
    assert page.startswith("# ")
    assert f"[This page as a notebook]({path.stem}.ipynb)" in page
    assert "```{ .text .output }\n" in page
    assert found.pop(f"tutorials/{path.stem}.ipynb") == tutorials.notebook(path.read_text(encoding="utf-8"))
    assert all(name.startswith("pictures/") and picture.startswith("<?xml") for name, picture in found.items())


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook_with_the_same_code(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    made = json.loads(tutorials.notebook(source))

    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    code = "\n".join(cell["source"] for cell in made["cells"] if cell["cell_type"] == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(source))
    text = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "markdown"]
    assert text[0].startswith("# ")
    assert not any(line.startswith("# #") for each in text for line in each.splitlines())


def test_every_method_says_when_it_fails_and_no_other_does() -> None:
    assert set(method_page.cells("when_methods_fail.md", 0)) == set(own_methods())


@pytest.mark.parametrize("page", ["when_methods_fail.md", "methods.md"])
def test_links_in_tables_lead_somewhere_from_the_pages_of_methods(page: str) -> None:
    cells = [cell for row in method_page.cells(page, 0).values() for cell in row]
    targets = [target for cell in cells for target in re.findall(r"\]\(([^)#]+)", cell) if ":" not in target]
    assert all((ROOT / "docs" / "methods" / target).resolve().is_file() for target in targets), targets
    assert method_page.links_from_below("[a](b/c.md#d), [e](#f), [g](https://h.org)", page) == (
        f"[a](../b/c.md#d), [e](../{page}#f), [g](https://h.org)"
    )


@pytest.mark.parametrize(
    ("name", "forward", "backward"), [("ls", 1, 1), ("famo", 2, 1), ("mgda", 1, 3), ("modo", 1, 7)]
)
def test_passes_are_counted(name: str, forward: float, backward: float) -> None:
    # modo: three tasks on each of two batches of a third, and one backward pass on the last.
    found = passes(name, 3)

    assert found.forward == pytest.approx(forward)
    assert found.backward == backward


def test_behaviour_tells_methods_that_never_harm_from_others() -> None:
    safe, other = behaviour("mgda"), behaviour("krum")

    assert safe is not None
    assert other is not None
    assert safe.harm == 0.0 < other.harm
    assert behaviour("famo") is None


def test_methods_without_harm_on_the_draws_are_those_that_claim_it() -> None:
    for name in own_methods():
        found = behaviour(name)
        if found is not None and "non_conflicting" in make(name).facts.laws:
            assert found.harm == 0.0, name


def test_links_between_files_become_links_between_pages() -> None:
    text = (
        "[a](../packages/mtl-core/README.md#limits), [b](cost.md), ![c](figures/toy.png), [d](../noxfile.py), `[e](f)`"
    )

    found = repository.rewritten(text, "docs/adoption.md", "adoption.md")

    assert found == "[a](packages/mtl-core.md#limits), [b](cost.md), ![c](figures/toy.png), d (`noxfile.py`), `[e](f)`"
    assert repository.rewritten("[a](docs/cost.md)", "README.md", "index.md") == "[a](cost.md)"
    assert repository.rewritten("[a](tutorials/07_pinn.py)", "docs/a.md", "a.md") == "[a](tutorials/07_pinn.md)"
    with pytest.raises(FileNotFoundError, match="absent"):
        repository.rewritten("[a](../absent)", "docs/a.md", "a.md")


def test_names_of_methods_become_links_but_not_in_code_headings_and_links() -> None:
    text = "## `FAMO`\n\n`FAMO`, [`FAMO`](x.md)\n\n```python\nFAMO()\n```\n"

    found = method_page.linked(text, "concepts/scale.md")

    assert found == "## `FAMO`\n\n[`FAMO`](../methods/famo.md), [`FAMO`](x.md)\n\n```python\nFAMO()\n```\n"


def test_docstrings_become_markdown() -> None:
    table = "=====  ====\nmoved  by\n=====  ====\na      1\n=====  ====\n"
    text = "One :math:`x_i`.\n\n.. math::\n    a \\\\\n    b\n\n" + table

    found = as_markdown(text)

    assert found.startswith("One \\(x_i\\).\n\n\\[a \\\\ b\\]\n")
    assert "| moved | by |\n| --- | --- |\n| a | 1 |" in found


def test_every_public_name_has_a_page_and_a_docstring() -> None:
    pages, navigation = reference.reference_pages()
    methods = [f"::: mtl_aggregators.{cls.__name__}\n" for cls in own_methods().values()]
    own = "\n".join([*pages.values(), *methods])

    assert "Further names" not in str(navigation), "say in docsite/reference.py what they belong to"
    absent = [name for name in reference.documented() if f"::: {name}\n" not in own]
    silent = [
        f"{module}.{name}"
        for module, names in public_modules().items()
        for name in names
        if isinstance(value := getattr(sys.modules[module], name), type | FunctionType) and not value.__doc__
    ]

    assert absent == []
    assert silent == []


@pytest.mark.parametrize("name", CONCEPTS)
def test_every_concept_has_its_picture_on_its_page(name: str) -> None:
    assert (ROOT / "docs" / "figures" / "concepts" / f"{name}.svg").is_file()
    assert f"(../figures/concepts/{name}.svg)" in (ROOT / "docs" / "concepts" / f"{name}.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", CONCEPTS)
def test_the_picture_of_a_concept_is_as_its_code_draws_it_today(name: str) -> None:
    kept = (ROOT / "docs" / "figures" / "concepts" / f"{name}.svg").read_text(encoding="utf-8")
    drawn = svg(CONCEPTS[name]()).decode()

    for part in (r'viewBox="([^"]*)"', r">([^<>]+)</text>"):  # its size and its words; lines differ by rounding
        assert re.findall(part, kept) == re.findall(part, drawn), "run: python -m docsite.pictures"


def test_the_heat_map_of_the_first_page_is_what_its_code_draws() -> None:
    kept = (ROOT / "docs" / "figures" / "start.svg").read_text(encoding="utf-8")
    shown = [float(number) for number in re.findall(r">(-?\d\.\d\d)</text>", kept)]
    drawn = [float(text.get_text()) for text in heat_map().axes[0].texts]

    assert "(figures/start.svg)" in (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert len(drawn) == 9
    assert min(drawn) < -0.2  # there is a conflict to see
    assert shown[: len(drawn)] == pytest.approx(drawn, abs=0.011)


def test_pages_import_public_names_only() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("packages/*/README.md"), *ROOT.glob("docs/**/*.md")]
    text = {page: page.read_text(encoding="utf-8") for page in [*pages, *TUTORIALS]}
    modules = public_modules()
    internal = []
    for page, content in text.items():
        shown = [content] if page.suffix == ".py" else re.findall(r"^```py(?:thon)?\n(.*?)^```$", content, re.M | re.S)
        for node in (node for code in shown for node in ast.walk(ast.parse(code))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mtl_"):
                known = modules.get(node.module or "", ())
                internal += [f"{node.module}.{each.name}" for each in node.names if each.name not in known]

    assert internal == []
