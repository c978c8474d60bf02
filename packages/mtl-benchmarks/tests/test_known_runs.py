"""Runs of earlier studies are taken from their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.studies.records import Record, read_records, write_records
from mtl_benchmarks.studies.study import Study, study

DIGITS = Choice("digits", {"n_train": 192, "n_test": 64})
TASKS = 3


def trained(
    out: Path,
    methods: Sequence[Choice],
    known: Sequence[Record] = (),
    teleports: Sequence[str] = ("none",),
    **settings: Any,
) -> tuple[Study, list[str]]:
    said: list[str] = []
    found = study(
        DIGITS,
        methods,
        seeds=(3, 5),
        out=out,
        teleports=teleports,
        settings={"epochs": 1, **settings},
        say=said.append,
        known=known,
    )
    return found, said


def without_times(records: Sequence[Record]) -> list[Record]:
    return [replace(record, seconds=0.0) for record in records]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Of LS and CAGrad, as a table hands them back."""
    folder = tmp_path_factory.mktemp("earlier")
    found, _ = trained(folder / "runs", [Choice("ls"), Choice("cagrad", {"c": 0.5, "rescale": "c2"})])
    write_records(folder / "table.csv", found.records)
    return read_records([folder / "table.csv"])


def test_only_what_is_not_known_is_trained(tmp_path: Path, earlier: list[Record]) -> None:
    methods = [Choice("ls"), Choice("mgda")]
    found, said = trained(tmp_path / "part", methods, earlier)
    assert sorted((run.config.label, run.config.seed) for run in found.runs) == [("mgda", 3), ("mgda", 5)]
    assert said == [f"{2 * TASKS + 2} of {2 * TASKS + 4} runs are taken from tables of earlier studies."]
    whole, _ = trained(tmp_path / "whole", methods)
    assert without_times(found.records) == without_times(whole.records)
    assert [row.measure for row in found.rows] == [row.measure for row in whole.rows]


def test_all_of_it_may_be_known(tmp_path: Path, earlier: list[Record]) -> None:
    found, _ = trained(tmp_path / "runs", [Choice("ls")], earlier)
    assert not found.runs
    assert found.records == [record for record in earlier if record.method in ("", "ls")]


def test_another_order_of_options_is_the_same_run_under_todays_name(tmp_path: Path, earlier: list[Record]) -> None:
    renamed = [replace(record, method=record.method and "of another version") for record in earlier]
    found, _ = trained(tmp_path / "runs", [Choice("cagrad", {"rescale": "c2", "c": 0.5})], renamed)
    assert not found.runs
    assert {record.method for record in found.records} == {"", "cagrad (c 0.5, rescale c2)"}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"epochs": 2}, Choice("ls")),
        ({"lr": 0.002}, Choice("ls")),
        ({}, Choice("cagrad", {"c": 0.6, "rescale": "c2"})),
    ],
    ids=["epochs", "rate", "an option of the method"],
)
def test_runs_of_another_kind_are_not_taken(
    settings: dict[str, Any], method: Choice, tmp_path: Path, earlier: list[Record]
) -> None:
    found, _ = trained(tmp_path / "runs", [method], earlier, **settings)
    joint = [run for run in found.runs if not run.config.is_single_task]
    assert [run.config.seed for run in joint] == [3, 5]
    # The tasks' own runs know no method: they are taken where the protocol is the same.
    assert len(found.runs) - len(joint) == (2 * TASKS if settings else 0)


def test_nor_are_runs_whose_options_are_not_known(tmp_path: Path, earlier: list[Record]) -> None:
    found, said = trained(tmp_path / "runs", [Choice("ls")], [replace(record, options="") for record in earlier])
    assert len(found.runs) == 2 * TASKS + 2
    assert said == [f"0 of {2 * TASKS + 2} runs are taken from tables of earlier studies."]


def test_runs_with_teleports_are_trained_as_their_controls_need_their_moves(tmp_path: Path) -> None:
    ways = ("cost", "random")
    before, _ = trained(tmp_path / "before", [Choice("ls")], teleports=ways)
    found, _ = trained(tmp_path / "after", [Choice("ls")], list(before.records), teleports=ways)
    assert {run.config.teleport.name for run in found.runs if run.config.teleport is not None} <= {"cost", "random"}
    assert found.runs
    assert all(run.config.teleport is not None for run in found.runs)
    assert without_times(found.records) == without_times(before.records)


def test_a_run_that_diverged_is_known_to_have(tmp_path: Path, earlier: list[Record]) -> None:
    known = [
        replace(record, diverged=True, values={}) if record.method == "ls" and record.seed == 3 else record
        for record in earlier
    ]
    found, _ = trained(tmp_path / "runs", [Choice("ls")], known)
    assert [(record.seed, record.diverged) for record in found.records if record.method] == [(3, True), (5, False)]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = ["digits", "--benchmark.n_train", "192", "--benchmark.n_test", "64"]
    words = ["study", *case, "--epochs", "1", "--seeds", "0,1"]
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    assert main([*words, "--out", str(tmp_path / "a"), "--csv", str(first)]) == 0
    capsys.readouterr()
    more = ["--out", str(tmp_path / "b"), "--csv", str(second), "--known", str(first)]
    assert main([*words, "--methods", "ls", "mgda", *more]) == 0
    printed = capsys.readouterr().out
    assert "8 of 10 runs are taken" in printed
    assert "2: mgda, seed 1" in printed
    assert "3:" not in printed
    assert all(record in read_records([second]) for record in read_records([first]))
    # Nothing is left to be trained.
    assert main([*words, "--out", str(tmp_path / "c"), "--known", str(first)]) == 0
    assert "8 of 8 runs are taken" in capsys.readouterr().out


def test_bad_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "digits", "--epochs", "1", "--out"]
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for path, expected in ((tmp_path / "none.csv", "none.csv"), (other, "must begin with the columns")):
        assert main([*words, str(tmp_path / "runs"), "--known", str(path)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
