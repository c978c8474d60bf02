"""The tutorial docs/own_benchmark.md, taken outside this repository: its files are written, its commands are run."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_core import StepOptions, StepReport, step
from mtl_core.testing import small_problem

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_benchmark.md").read_text(encoding="utf-8")
MODULES = re.findall(r"`(\w+\.py)`:\n\n```py\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ mtl-bench (.*)$", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the repository with the files of the page and a table."""
    path = tmp_path_factory.mktemp("elsewhere")
    assert ROOT not in path.resolve().parents
    for name, content in MODULES:
        (path / name).write_text(content, encoding="utf-8")
    draw = random.Random(0)
    lines = ["a,b,tension,weight,price"]
    for _ in range(50):
        a, b = draw.gauss(0, 1), draw.gauss(0, 1)
        lines.append(",".join(f"{value:.4f}" for value in (a, b, a + b, a - 2 * b, a * b)))
    (path / "three.csv").write_text("\n".join(lines) + "\n")
    return path


DRIVER = """
import contextlib, io, json, sys
from mtl_benchmarks.cli import main

for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words.split())
    print(json.dumps([words, code, out.getvalue(), err.getvalue()]))
"""
"""Runs commands one after the other in a process that knows nothing of this repository's folders."""


def mtl_bench(folder: Path, *commands: str) -> dict[str, tuple[int, str, str]]:
    """Command → exit code and what it printed to either stream."""
    found = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(commands),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return {words: (code, out, err) for words, code, out, err in map(json.loads, found.stdout.splitlines())}


def test_the_page_has_its_files_and_commands() -> None:
    assert [name for name, _ in MODULES] == ["mine.py", "ways.py"]
    assert len(COMMANDS) == 8


def test_the_benchmark_takes_at_most_forty_lines() -> None:
    lines = MODULES[0][1].splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120


def test_the_commands_of_the_page_run(folder: Path) -> None:
    found = mtl_bench(folder, *COMMANDS)
    assert list(found) == COMMANDS
    assert {words: (code, err) for words, (code, _, err) in found.items()} == dict.fromkeys(COMMANDS, (0, ""))
    described = found["describe mine:Three"][1]
    assert "--benchmark.width INTEGER (16)\n      units of the shared layer." in described
    assert "error_price, of price, lower is better" in described
    compared = found["compare runs"][1]
    assert all(name in compared for name in ("fairgrad", "single tension", "Δm"))
    assert "ways:InverseNorm (power 0.5)" in found[COMMANDS[-1]][1]


def test_what_was_trained_has_learnt_something_and_runs_again(folder: Path) -> None:
    first, missing = "run mine:Three --out learnt", "run mine:Three --benchmark.file none.csv"
    found = mtl_bench(folder, first, missing)
    code, printed, said = found[first]
    assert (code, said) == (0, "")
    run = Path(folder, printed.splitlines()[-1].removeprefix("run: "))
    values = json.loads((run / "result.json").read_text())["values"]
    assert values["error_tension"] < 1.0  # the variance of a + b is 2
    again = f"run --config {run}/config.json --out again"
    assert mtl_bench(folder, again)[again][0] == 0
    assert json.loads((folder / "again" / run.name / "result.json").read_text())["values"] == values
    assert found[missing][:2] == (2, "")
    assert found[missing][2].startswith("mtl-bench: 'none.csv' must be usable, got No such file or directory.")


def test_the_wrapper_hands_on_how_the_step_is_asked_for() -> None:
    """Clipping, heads and scaling are settings of the step, and a wrapper that drops them trains otherwise."""
    written: dict[str, Any] = {"__name__": "ways"}
    exec(dict(MODULES)["ways.py"], written)

    class Recording:
        def step(self, problem: Any, batch: Any, optimizer: Any, *, options: StepOptions) -> StepReport:
            asked.append(options)
            losses = problem.losses(batch).values.detach()
            return StepReport(losses, None, None, problem.tasks)

    asked: list[StepOptions] = []
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step(problem, batch, optimizer, written["Shake"](Recording()), heads="weighted", max_norm=0.5)

    assert [(each.heads, each.max_norm) for each in asked] == [("weighted", 0.5)]
