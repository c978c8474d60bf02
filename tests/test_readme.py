"""The code in the README files and in docs/ runs as it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
PAGES = [*READMES, *sorted(ROOT.glob("docs/**/*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


@dataclass(frozen=True)
class Block:
    """A fenced block of Python: its code, moved down so that tracebacks name the line in the page."""

    page: Path
    line: int
    code: str

    def run(self, namespace: dict[str, Any]) -> None:
        exec(compile("\n" * (self.line - 1) + self.code, str(self.page), "exec"), namespace)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, match.start("code")) + 1, match["code"]) for match in FENCE.finditer(text)]


def test_finds_every_block_and_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\na = 1\n```\n\n```console\n$ ls\n```\n\n```python\nb = a + 1\n```\n")

    first, second = blocks(page)

    assert (first.line, first.code) == (4, "a = 1\n")
    assert (second.line, second.code) == (12, "b = a + 1\n")
    namespace: dict[str, Any] = {}
    first.run(namespace)
    second.run(namespace)
    assert namespace["b"] == 2


def test_an_error_names_the_line_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\nx / 0\n```\n")

    with pytest.raises(ZeroDivisionError) as raised:
        blocks(page)[0].run({})

    assert raised.traceback[-1].lineno == 4  # counted from zero


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", READMES, ids=name)
def test_every_readme_shows_code(page: Path) -> None:
    assert blocks(page)


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_file() and blocks(page)], ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page run in order, each seeing what the ones above it defined."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page):
        block.run(namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```$|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", prose)

    missing = [link for link in links if not (page.parent / link).exists()]

    assert not missing


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    plain = (
        re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", found) for found in re.findall(r"^#+ (.*)$", text, flags=re.M)
    )
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def test_anchors_are_those_of_forges(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# TorchJD's `step`, [here](a.md)\n\n```console\n# no heading\n```\n\n## cost-6: paths\n")

    assert anchors(page) == {"torchjds-step-here", "cost-6-paths"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_into_pages_meet_a_heading(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```$|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)#([^)\s]+)\)", prose)
    targets = [(page.parent / file if file else page, anchor) for file, anchor in links]

    assert [(str(to), anchor) for to, anchor in targets if to.suffix == ".md" and anchor not in anchors(to)] == []
