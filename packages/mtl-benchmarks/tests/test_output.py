"""What commands write is looked at before the work, written whole, and as far as it got when the work breaks off."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs import pool
from mtl_benchmarks.runs.runner import RunResult, run
from mtl_benchmarks.storage.output import writable_directory, writable_file
from mtl_benchmarks.studies.records import Record, read_records, write_records
from mtl_core import ResultsDirectoryError

STUDY = ["study", "digits", "--benchmark.n_train", "96", "--benchmark.n_test", "32", "--epochs", "1", "--seeds", "1"]
STUDY += ["--methods", "ls", "mgda"]


def a_directory(place: Path) -> Path:
    place.mkdir()
    return place


def below_a_file(place: Path) -> Path:
    place.write_text("text")
    return place / "records.csv"


def a_device(place: Path) -> Path:
    return Path(os.devnull)


def a_pipe(place: Path) -> Path:
    os.mkfifo(place)
    return place


def with_a_slash(place: Path) -> str:
    return f"{place}/"


def another_file(place: Path) -> Path:
    place.write_text("my notes\n")
    return place


PLACES: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "a directory": (a_directory, "must be a file, got the directory"),
    "below a file": (below_a_file, "must be writable, got"),
    "a device": (a_device, "must be a file, got the device or pipe"),
    "a pipe": (a_pipe, "must be a file, got the device or pipe"),
    "with a slash": (with_a_slash, "must be a file, got the directory"),
    "another file": (another_file, "must be a new file or a table of records"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_table_that_cannot_be_written_is_found_before_anything_is_trained(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = PLACES[place]
    path = make(tmp_path / "place")
    assert main([*STUDY, "--out", str(tmp_path / "runs"), "--csv", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mtl-bench: `--csv` ")
    assert words in error
    assert not (tmp_path / "runs").exists()
    if place == "another file":
        assert Path(path).read_text() == "my notes\n"


@pytest.mark.parametrize("place", ["a directory", "below a file", "a pipe"])
def test_so_is_a_page(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*arguments: Any, **more: Any) -> str:
        raise AssertionError("the page was drawn")

    monkeypatch.setattr("mtl_benchmarks.html_report.page.render", drawn)
    make, words = PLACES[place]
    config = RunConfig.resolve(Choice("digits", {"n_train": 64, "n_test": 32}), epochs=1)
    run(config, tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--out", str(make(tmp_path / "place"))]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "png"])
def test_so_are_the_files_of_a_figure(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"cost-3.{ending}").mkdir()
    assert main(["figure", "cost-3", "--out", str(tmp_path)]) == 2
    assert f"must be a file, got the directory '{tmp_path}/cost-3.{ending}'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_so_is_a_directory_of_figures(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsDirectoryError, match="`--figures` must be writable"):
        writable_directory("--figures", tmp_path / "file")
    assert writable_directory("--figures", tmp_path / "new") == tmp_path / "new"
    assert list((tmp_path / "new").iterdir()) == []


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "folder" / "target.csv")
    assert writable_file("--csv", tmp_path / "link.csv") == tmp_path / "folder" / "target.csv"
    write_records(tmp_path / "link.csv", [ALONE])
    assert (tmp_path / "link.csv").is_symlink()
    assert read_records([tmp_path / "folder" / "target.csv"]) == [ALONE]


ALONE = Record("digits", "", "0", "", "ls", "none", "", 0, 0, 1.5, False, {"error_image": 0.5})


def test_a_table_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.csv"
    write_records(path, [ALONE])
    before = path.read_bytes()

    def full(handle: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResultsDirectoryError, match="No space left"):
        write_records(path, [ALONE, ALONE])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["records.csv"]


def test_a_study_that_breaks_off_leaves_the_records_of_the_runs_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(config: RunConfig, directory: Path, **more: Any) -> RunResult:
        if config.method.name == "mgda":
            raise KeyboardInterrupt
        return run(config, directory, **more)

    words = [*STUDY, "--out", str(tmp_path / "runs"), "--csv", str(tmp_path / "folder" / "records.csv")]
    monkeypatch.setattr(pool, "run", ends)
    assert main(words) == 130
    found = read_records([tmp_path / "folder" / "records.csv"])
    assert [(each.task, each.method) for each in found] == [("left", ""), ("right", ""), ("image", ""), ("", "ls")]
    monkeypatch.undo()
    capsys.readouterr()
    assert main(words) == 0
    assert len(read_records([tmp_path / "folder" / "records.csv"])) == 5
    shown = capsys.readouterr().out
    assert main(["verdict", str(tmp_path / "folder" / "records.csv")]) == 0
    assert re.sub(r"\s+", "", capsys.readouterr().out) in re.sub(r"\s+", "", shown)


@pytest.mark.parametrize(
    "words",
    [
        "run digits --checkpoint_every 0",
        "run digits --checkpoint_every -1",
        "run digits --prefetch 0",
        "run digits --workers -1",
        "study digits --methods ls --processes 0",
        "study digits --methods ls --processes -1",
        "ablate digits --method ls --parts sharpness --processes 0",
    ],
)
def test_a_number_out_of_range_makes_no_directory(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--benchmark.n_train", "96", "--benchmark.n_test", "32", "--epochs", "1", "--seeds", "1"]
    assert main([*words.split(), *small, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert f"{words.split()[-2].removeprefix('--')}` must be a whole number of at least" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_name_that_no_file_can_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ResultsDirectoryError, match="must be a name that a file can have"):
        writable_file("--csv", "a\0b")
    for words in (["verdict", "a\0b"], ["run", "--config", "a\0b"], ["compare", "a\0b"], ["report", "a\0b"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "null" in error
        assert error.count("\n") == 1
