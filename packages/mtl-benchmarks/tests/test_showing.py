"""Tables of a run that goes on: as they stand, without taking its time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.runs.showing import Showing
from mtl_benchmarks.storage.results import RunDirectory

HERE = Path(__file__).parent


@pytest.mark.parametrize("n", [25, 100, 1000])
def test_rows_that_are_written_grow_with_the_run_and_not_with_its_square(n: int) -> None:
    showing = Showing()
    written = [k for k in range(1, n + 1) if showing.after(k).tables]
    assert sum(written) <= 26 * n
    assert written[:24] == list(range(1, 25))
    late = [later - earlier for earlier, later in pairwise(written)]
    assert max(late) <= 2 * (1 + n // 25)  # what is shown is never far behind


def test_single_steps_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mtl_benchmarks.runs.showing.time.monotonic", lambda: now)
    showing = Showing()
    assert showing.after(1) == (True, True)
    now = 129.0
    assert showing.after(2) == (True, False)
    assert showing.after(51) == (True, False)
    assert showing.after(52) == (False, False)
    now = 130.0
    assert showing.after(52) == (True, True)


def test_a_long_run_writes_its_tables_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    written = 0
    under = RunDirectory.write_table

    def write_table(files: RunDirectory, name: str, content: bytes, *, durable: bool = False) -> None:
        nonlocal written
        written += name == "metrics.csv"
        under(files, name, content, durable=durable)

    monkeypatch.setattr(RunDirectory, "write_table", write_table)
    result = run(RunConfig.resolve("many_lines:Three", "ls", epochs=60), tmp_path / "run")
    assert written <= 24 + 13 + 4 + 1  # of 24, every second of the next 25, every third, and the last, which lasts
    rows = (result.directory / "metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("60,120,")
