"""The door for benchmarks' data."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mtl_benchmarks.benchmarks import available
from mtl_benchmarks.cli import main

MODULE = '''
"""A benchmark that reads files: official ones, or ones that are made here."""

from mtl_benchmarks import DataSource, Toy


class Official(DataSource):
    """Files of an office."""

    def instructions(self, root):
        return f"fetch numbers.txt (6 bytes) from the office into {root}/"

    def problems(self, root):
        file = root / "numbers.txt"
        if not file.is_file():
            return [f"{file} is missing"]
        return [] if file.stat().st_size == 6 else [f"{file} has {file.stat().st_size} bytes, not 6", "and is wrong"]


class Made(Official):
    """Files like those of the office, made here.

    Args:
        digit: what is written.
    """

    def __init__(self, *, digit: int = 7):
        self.digit = digit

    def write(self, root, said):
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "numbers.txt").exists():
            (root / "numbers.txt").write_text(6 * str(self.digit))
            said(f"written: {root / 'numbers.txt'}")


class Filed(Toy):
    """Reads numbers."""

    name = "filed"

    @staticmethod
    def data_sources():
        return {"filed": Official, "made-numbers": Made}


class Below(Filed):
    """Inherits them."""
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "files_of_others.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "files_of_others", raising=False)
    point = EntryPoint("filed", "files_of_others:Filed", "mtl.benchmarks")
    monkeypatch.setattr("mtl_core.plugins.entry_points", lambda group: [point] if group == point.group else [])
    return tmp_path / "data"


@pytest.mark.parametrize("name", available())
def test_todays_benchmarks_read_no_files(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", name, "--root", "there"]) == 0
    assert capsys.readouterr().out == f"{name} reads no files: there is nothing to fetch. Next: mtl-bench run {name}\n"
    assert list(tmp_path.iterdir()) == []


def test_official_files_are_asked_for_and_checked(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "filed"]) == 0
    assert "fetch numbers.txt (6 bytes) from the office into DIR/" in capsys.readouterr().out
    assert main(["data", "filed", "--root", str(installed)]) == 2
    found = capsys.readouterr()
    assert "fetch numbers.txt" in found.out
    assert found.err == (
        f"mtl-bench: `--root` must hold the files of filed, got {installed / 'numbers.txt'} is missing.\n"
    )
    installed.mkdir()
    (installed / "numbers.txt").write_text("1")
    assert main(["data", "files_of_others:Below", "--root", str(installed)]) == 2
    found = capsys.readouterr()
    assert "has 1 bytes, not 6, and 1 more problems." in found.err
    assert "  - and is wrong" in found.out
    (installed / "numbers.txt").write_text("123456")
    assert main(["data", "filed", "--root", str(installed)]) == 0
    assert f"{installed}: complete." in capsys.readouterr().out


def test_files_are_made_with_options(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "made_numbers", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Files like those of the office, made here." in printed
    assert "--data.digit INTEGER" in printed
    assert main(["data", "made-numbers", "--root", str(installed), "--data.digit", "3"]) == 0
    assert "written:" in capsys.readouterr().out
    assert (installed / "numbers.txt").read_text() == "333333"
    assert main(["data", "made-numbers", "--root", str(installed)]) == 0  # what is there stays
    assert "written:" not in capsys.readouterr().out
    assert (installed / "numbers.txt").read_text() == "333333"
    assert main(["data", "made-numbers", "--data.digit", "x"]) == 2
    assert "`--data.digit` must be a whole number, got 'x'." in capsys.readouterr().err


def test_bad_input(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        "data": "must be followed by one name, got none. Valid: ctr, digits, filed, mt10, qm9, toy, made-numbers.",
        "data file": "unknown benchmark or data 'file'. Did you mean 'filed'?",
        "data toy more": "must be followed by one name, got toy more",
        "data toy --data.digit 3": "unknown option '--data.digit'. Valid: --root.",
        "data filed --root": "`--root` must be followed by a value",
        "data files_of_others:Official": "must be a subclass of mtl_benchmarks.Benchmark",
    }.items():
        assert main(words.split()) == 2
        assert message in capsys.readouterr().err
