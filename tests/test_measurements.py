"""The scripts that measure still run: each on as little as it takes, for what it prints and not for its numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"

DIGITS = "digits:n_train=320,n_test=32,width=2"
RUNS = {
    "against": ["{root}", "--rounds", "1", "--repeat", "1", "--cases", "step"],
    "auxiliary": [
        *("--benchmark", "digits:n_train=64,n_test=32,width=2", "--seeds", "2"),
        *("--main", "left", "right", "--auxiliary", "image", "--out", "{out}", "--csv", "{out}.csv"),
    ],
    "collect": ["--nets", "tiny", "--tasks", "2", "--rounds", "1"],
    "ctr": ["--train", "400", "--epochs", "1", "--seeds", "2", "--methods", "LS", "MARIGOLD"],
    "overhead": ["--rounds", "1"],
    "solvers": ["--cases", "1", "--repeats", "1", "--only", "others"],
    "step": ["--tasks", "2", "--rounds", "1", "--modes", "LS", "FAMO", "--heads", "unit", "--out", "{out}"],
    "teleport_states": ["--benchmarks", DIGITS, "--states", "1", "--seeds", "10,11", "--gap", "1", "--out", "{out}"],
    "teleport_twins": [
        *("--benchmarks", DIGITS, "--methods", "ls", "--seeds", "1", "--stages", "0.5", "--out", "{out}"),
        *("--htr", "released", "transported", "--designs", "default", "conflict", "flat", "random"),
    ],
    "toy": [
        "--starts",
        "0",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--plain-epochs",
        "1",
        "--processes",
        "1",
        "--out",
        "{out}",
    ],
}
EXPECTED = {
    "against": "fairgrad",
    "auxiliary": "bilevel, exact",
    "collect": "sequential",
    "ctr": "MARIGOLD",
    "overhead": "",
    "solvers": "IMTLG",
    "step": "FAMO",
    "teleport_states": "exact",
    "teleport_twins": "transported",
    "toy": "cost",
}


@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    if name == "collect":
        pytest.importorskip("torchjd", reason="torchjd is not installed (dependency group bench)")
    words = [word.format(out=tmp_path / "out", root=SCRIPTS.parent) for word in RUNS[name]]
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    # 1 says that a figure missed its aim, which on so little it may.
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert EXPECTED[name].lower() in done.stdout.lower()
    assert len(done.stdout.splitlines()) > 2
