import json
import os
from pathlib import Path

import pytest
import torch

from mtl_benchmarks.files import write_atomically
from mtl_benchmarks.marker import FORMAT, MARKER
from mtl_benchmarks.results import Collection, RunDirectory
from mtl_core import ResultsDirectoryError

CONFIG = {"method": {"name": "ls", "options": {"weights": None}}, "seed": 0}


def test_layout_of_a_new_run(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", CONFIG)
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json", "environment.json", MARKER]
    assert json.loads((tmp_path / "run" / MARKER).read_text()) == {"format": FORMAT, "kind": "run"}
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["torch_version"] == torch.__version__


def test_the_same_run_may_come_back(tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG)
    before = (tmp_path / "environment.json").read_text()
    RunDirectory(tmp_path, CONFIG)
    assert (tmp_path / "environment.json").read_text() == before


def test_refuses_a_directory_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for make in (lambda: RunDirectory(tmp_path, CONFIG), lambda: Collection(tmp_path)):
        with pytest.raises(ResultsDirectoryError, match=r"must be empty or written by mtl-bench.*thesis\.tex"):
            make()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_refuses_another_configuration_and_says_where_it_differs(tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG)
    other = {"method": {"name": "ls", "options": {"weights": [1.0, 2.0]}}, "seed": 1}
    with pytest.raises(
        ResultsDirectoryError, match=r"method\.options\.weights: None there, \[1\.0, 2\.0\] here; seed: 0 there, 1"
    ):
        RunDirectory(tmp_path, other)
    assert RunDirectory.existing(tmp_path).read_config() == CONFIG


def test_refuses_a_file_another_kind_another_format_and_a_broken_marker(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ResultsDirectoryError, match="got the file"):
        Collection(file)
    Collection(tmp_path / "collection")
    with pytest.raises(ResultsDirectoryError, match="must be a run, got a collection"):
        RunDirectory(tmp_path / "collection", CONFIG)
    RunDirectory(tmp_path / "run", CONFIG)
    with pytest.raises(ResultsDirectoryError, match="must be a collection, got a run"):
        Collection(tmp_path / "run")
    (tmp_path / "run" / MARKER).write_text(json.dumps({"format": FORMAT + 1, "kind": "run"}))
    with pytest.raises(ResultsDirectoryError, match=f"must have format {FORMAT}, got {FORMAT + 1}"):
        RunDirectory(tmp_path / "run", CONFIG)
    (tmp_path / "run" / MARKER).write_text("{")
    with pytest.raises(ResultsDirectoryError, match="readable"):
        RunDirectory(tmp_path / "run", CONFIG)


def test_a_process_killed_while_it_began_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".mtl-bench-abc").write_text("half a marker")
    RunDirectory(tmp_path, CONFIG)
    assert not (tmp_path / ".mtl-bench-abc").exists()
    (tmp_path / "config.json").unlink()  # killed between the marker and the configuration
    RunDirectory(tmp_path, CONFIG)
    assert RunDirectory.existing(tmp_path).read_config() == CONFIG


def test_existing_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsDirectoryError, match="must hold a run"):
        RunDirectory.existing(tmp_path)
    Collection(tmp_path)
    with pytest.raises(ResultsDirectoryError, match="must hold a run"):
        RunDirectory.existing(tmp_path)


def test_write_atomically_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.csv"
    write_atomically(file, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_tables_keep_every_bit(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path, CONFIG)
    values = [0.1 + 0.2, 1e-300, -1 / 3]
    files.write_table("trace.csv", ["x1", "x2", "x3"], [values])
    assert files.read_trace() == [values]
    assert RunDirectory(tmp_path / "other", CONFIG).read_trace() == []


def test_two_cannot_work_on_one_run(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path, CONFIG), RunDirectory(tmp_path, CONFIG)
    with first.exclusive(), pytest.raises(ResultsDirectoryError, match="another process"), second.exclusive():
        pass
    with second.exclusive():
        pass


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path, CONFIG)
    assert files.read_checkpoint() is None
    files.write_checkpoint({"weights": torch.arange(3), "step": 4, "nested": [{"a": (1, 2.5)}]})
    found = files.read_checkpoint()
    assert found is not None
    assert found["weights"].tolist() == [0, 1, 2]
    assert found["nested"] == [{"a": (1, 2.5)}]
