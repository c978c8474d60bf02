"""Commands on the pages: the sessions, scripts, options and files in them exist, and those in a row run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mtl_benchmarks.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("docs/tutorials/*.py")),
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def sessions() -> set[str]:
    """The sessions of the noxfile: functions with the decorator."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {each.name for each in functions if any("nox.session" in ast.unparse(d) for d in each.decorator_list)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sessions_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"nox -s ([^`#\n]+)|(?<![\w-])-s \"(\w+)", text)
    asked = [re.match(r"[\w ]*", first)[0].split() if first else [second] for first, second in named]  # type: ignore[index]

    assert {session for each in asked for session in each} <= sessions()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_scripts_that_pages_measure_with_have_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    wrong = []
    for script, words in re.findall(r"(?:bench -- |python benchmarks/)(\w+)(?:\.py)?([^`#\n]*)", text):
        path = ROOT / "benchmarks" / f"{script}.py"
        if script == "NAME":
            continue
        code = path.read_text(encoding="utf-8") if path.is_file() else ""
        wrong += [script] if not code else []
        wrong += [f"{script} {option}" for option in re.findall(r"--[\w-]+", words) if f'"{option}"' not in code]

    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_exist(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:docs|docsite|packages|tests|benchmarks|\.ci)/[\w./-]+\.\w+)`", text)
    example = r"inverse_norm|sum_of_squares"  # files that a page has its reader write

    assert [path for path in named if not (ROOT / path).exists() and not re.search(example, path)] == []


def smaller(command: str) -> list[str]:
    """The words of a command, with less to train; a study's and a run's benchmark is digits."""
    words = re.sub(r"--seeds \S+", "--seeds 1", re.sub(r"--processes \d+| > .*", "", command)).split()
    if words[0] == "run":
        return [*words, "--benchmark.n_train", "64", "--benchmark.n_test", "32", "--epochs", "1"]
    if words[0] == "study":
        return [words[0], "digits:n_train=64,n_test=32,width=2", *words[2:], "--epochs", "1"]
    return words


SEQUENCES = {
    "README.md": "Three levels of use",
    "docs/start.md": "5. Run a whole benchmark",
    "docs/results.md": "A table for a paper",
}


@pytest.mark.parametrize("page", SEQUENCES)
def test_commands_that_follow_each_other_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other in an empty folder, as a reader would type them: each finds what those before it wrote."""
    monkeypatch.chdir(tmp_path)
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"## {SEQUENCES[page]}\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ mtl-bench (.*)$", section, flags=re.MULTILINE)

    assert len(commands) > 1
    for command in commands:
        assert main(smaller(command)) == 0, (command, capsys.readouterr().err)
