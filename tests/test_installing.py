"""Every line that installs something is one that works today; `nox -s ladder` and `nox -s build` run them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LADDER = {
    "mtl-core": ["mtl-core"],
    "mtl-aggregators": ["mtl-core", "mtl-aggregators"],
    "mtl-teleport": ["mtl-core", "mtl-teleport"],
    "mtl-benchmarks": ["mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks"],
}
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def lines_of(section: str) -> dict[str, str]:
    """Package → the line of its row in a section of docs/installing.md."""
    text = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| (mtl-\w+) \| `(.+)` \|$", part, flags=re.M))


@pytest.mark.parametrize("package", LADDER)
def test_from_a_clone(package: str) -> None:
    assert re.findall(r"\./packages/([\w-]+)", lines_of("From a clone")[package]) == LADDER[package]


@pytest.mark.parametrize("package", LADDER)
def test_from_git(package: str) -> None:
    line = lines_of("From git")[package]

    assert re.findall(r'"git\+URL#subdirectory=packages/([\w-]+)"', line) == LADDER[package]


@pytest.mark.parametrize("package", LADDER)
def test_from_wheels(package: str) -> None:
    # The wheels lie in one folder, where pip finds the siblings by itself.
    line = lines_of("From wheels in a folder")[package]

    assert re.search(rf'--find-links dist "?{package}(\[[\w,]+\])?"?$', line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_promises_a_registry(page: Path) -> None:
    installs = re.findall(r"pip install[^\n`]*", page.read_text(encoding="utf-8"))

    for line in installs:
        for name in re.findall(r"(?<![\w/.-])mtl-\w+(?![\w/-])", line):
            assert "--find-links" in line or f"{name} @ git+" in line or page.name == "installing.md", line


def test_a_package_s_own_page_names_all_that_it_stands_on() -> None:
    for package, needed in LADDER.items():
        text = (ROOT / "packages" / package / "README.md").read_text(encoding="utf-8")
        lines = [re.findall(r"\./packages/([\w-]+)", line) for line in re.findall(r"pip install[^\n`]*", text)]
        assert needed in lines, package


def test_every_extra_is_in_the_table_and_all_is_what_it_says() -> None:
    declared = {}
    for package in LADDER:
        project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        declared |= {(package, extra): needs for extra, needs in project.get("optional-dependencies", {}).items()}
    text = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8").partition("\n## Extras\n")[2]

    assert set(re.findall(r"`(mtl-\w+)\[(\w+)\]`", text)) == set(declared)
    (said,) = re.findall(r"^\| `mtl-benchmarks\[all\]` \| (.*) \|$", text, flags=re.MULTILINE)
    assert declared["mtl-benchmarks", "all"] == [f"mtl-benchmarks[{said.replace(', ', ',')}]"]
