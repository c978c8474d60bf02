"""The numbers in the README are those that the demo measures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def numbers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_numbers", ROOT / ".ci" / "demo_numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_columns_of_times_are_left_out(numbers: ModuleType) -> None:
    printed = "**digits**\n\n| method | Δm | training \\[s\\] |\n|---|---:|---:|\n| ls | 3.1 | 20 |\n\ntext\n"

    assert numbers.tables(printed) == [[["method", "Δm"], ["---", "---:"], ["ls", "3.1"]]]


def test_the_readme_shows_three_methods_and_their_teleports(numbers: ModuleType) -> None:
    measures, moves = numbers.tables(numbers.said((ROOT / "README.md").read_text(encoding="utf-8")))

    assert [row[0] for row in measures[2:]] == ["fairgrad", "fairgrad + cost", "fairgrad + random"]
    assert [row[0] for row in moves[2:]] == ["fairgrad + cost", "fairgrad + random"]


@pytest.mark.slow
def test_the_demo_measures_what_the_readme_says(numbers: ModuleType, tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "mtl_benchmarks.demo", "--out", str(tmp_path)]
    subprocess.run(demo, check=True, capture_output=True)

    assert numbers.block(str(tmp_path)) == numbers.said((ROOT / "README.md").read_text(encoding="utf-8"))
