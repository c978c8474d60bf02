from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line import parse_choice
from mtl_benchmarks.command_line.kinds import KindName
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.naming import by_label, method_label, teleport_label
from mtl_benchmarks.metrics import delta_m
from mtl_benchmarks.runs.baselines import own_baselines
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory
from mtl_benchmarks.studies.matching_lengths import lengths_of
from mtl_benchmarks.studies.records import read_records
from mtl_benchmarks.studies.rows import StudyRow
from mtl_benchmarks.studies.study import study
from mtl_benchmarks.studies.tables import study_table
from mtl_core import InvalidParameterError, UnknownNameError

DIGITS = Choice("digits", {"n_train": 192, "n_test": 64})


def test_table_by_hand() -> None:
    rows = [
        StudyRow(
            "ls",
            {"none": {0: 10.0, 1: 12.0}, "cost": {0: 9.0, 1: 9.0}, "random as cost": {0: 10.0, 1: 10.0}},
            {"none": 1.0},
        ),
        StudyRow(
            "mgda",
            {"none": {0: 8.0, 1: 12.0}, "cost": {0: 8.0, 1: 8.0}, "random as cost": {0: 6.0, 1: 8.0}},
            {"none": 1.0},
        ),
    ]
    # For n = 2, t = 12.7062 and half the interval is t |a - b| / 2.
    assert rows[0].difference("cost").mean == -2.0
    assert rows[0].difference("cost").half_width == pytest.approx(12.7062 * 2.0 / 2.0, rel=1e-4)
    assert rows[1].difference("cost", "random as cost").mean == 1.0
    console = Console(width=200, record=True)
    console.print(study_table(rows, title="by hand"))
    lines = [line for line in console.export_text().splitlines() if line.strip().startswith(("ls", "mgda"))]
    first = "ls 11.00 ±12.71 9.00 ±0.00 -2.00 ±12.71 10.00 ±0.00 -1.00 ±0.00"
    second = "mgda 10.00 ±25.41 -1.00 ±12.71 8.00 ±0.00 -2.00 ±25.41 7.00 ±12.71 1.00 ±12.71"
    assert [line.split() for line in lines] == [first.split(), second.split()]


def test_every_way_of_every_method_with_a_control_as_long_as_cost(tmp_path: Path) -> None:
    seen: list[RunResult] = []
    found = study(
        DIGITS,
        [Choice("ls"), Choice("cagrad", {"c": 0.5})],
        seeds=(3, 5),
        out=tmp_path / "runs",
        teleports=("random", "memory"),
        settings={"epochs": 4},
        progress=seen.append,
    )
    rows, runs = found.rows, found.runs
    assert [row.name for row in rows] == ["ls", "cagrad (c 0.5)"]
    assert all(set(row.measure) == {"none", "cost", "random as cost", "memory as cost"} for row in rows)
    assert all(set(by_seed) == {3, 5} for row in rows for by_seed in row.measure.values())
    assert sum(run.config.is_single_task for run in runs) == 6
    assert len({run.config.name for run in runs}) == len(runs)
    assert {run.config.name for run in seen} == {run.config.name for run in runs}
    by_key = {
        (run.config.method.name, run.config.teleport.name, run.config.seed): run for run in runs if run.config.teleport
    }
    for (method, teleport, seed), run in by_key.items():
        if teleport == "random":
            assert run.config.teleport is not None
            like = by_key[method, "cost", seed].config.teleport
            assert like is not None
            assert run.config.teleport.options["length"] == lengths_of(by_key[method, "cost", seed])
            for name in ("trigger", "start_after", "max_per_epoch", "htr"):
                assert run.config.teleport.options[name] == like.options[name]
        if teleport == "memory":
            assert run.config.teleport is not None
            moves = [event for event in by_key[method, "cost", seed].events if event["accepted"]]
            assert moves
            assert run.config.teleport.options["steps"] == [event["step"] for event in moves]
            done = [(event["kind"], event["step"], event["sigma"]) for event in run.events]
            assert done == [("memory", event["step"], event["sigma"]) for event in moves]
    alone = next(run for run in runs if not run.config.is_single_task and run.config.seed == 5)
    expected = delta_m(alone.values, own_baselines(alone.config, runs))
    assert rows[0].measure["none"][5] == expected


def test_a_benchmark_without_single_tasks_shows_its_main_metric(tmp_path: Path) -> None:
    toy = Choice("toy", {"start": 1})
    found = study(toy, [Choice("ls")], seeds=(0,), out=tmp_path / "runs", settings={"epochs": 1})
    rows, runs = found.rows, found.runs
    assert [run.config.method.name for run in runs] == ["ls"]
    assert rows[0].measure["none"][0] == runs[0].values["distance"]


SAME: dict[str, tuple[list[str], list[str]]] = {
    "method": (
        ["cagrad", "CAGrad", "cagrad:c=0.4", "mtl_aggregators:CAGrad", "cagrad:c=0.40,rescale=none"],
        ["cagrad"],
    ),
    "a whole number": (["fairgrad:alpha=2", "fairgrad:alpha=2.0"], ["fairgrad (alpha 2.0)"]),
    "order": (
        ["cagrad:c=1,paper_scale=true", "cagrad:paper_scale=yes,c=1"],
        ["cagrad (c 1.0, paper_scale True)"],
    ),
    "others": (["ls", "mgda", "cagrad:c=0.5"], ["ls", "mgda", "cagrad (c 0.5)"]),
}
SAME_MOVES: dict[str, tuple[list[str], list[str]]] = {
    "name": (["cost", "COST", "mtl_teleport:COST", "cost:htr=keep", "cost:adapter=LoRA,adapter.rank=5"], ["cost"]),
    "part": (
        ["cost:trigger=majority,trigger.fraction=0.75", "cost:trigger=Majority,trigger.fraction=0.75,aim=1.5"],
        ["cost (trigger majority, trigger.fraction 0.75)"],
    ),
    # Both had been called `cost (trigger majority)`, and the second took the place of the first.
    "options of a part": (
        ["cost:trigger=majority,trigger.fraction=0.75", "cost:trigger=majority,trigger.fraction=0.25"],
        ["cost (trigger majority, trigger.fraction 0.75)", "cost (trigger majority, trigger.fraction 0.25)"],
    ),
    "required": (["random:length=0.1", "random:length=0.2"], ["random (length 0.1)", "random (length 0.2)"]),
}


@pytest.mark.parametrize("case", SAME)
def test_a_method_is_what_is_built_and_not_what_was_typed(case: str) -> None:
    words, labels = SAME[case]
    said: list[str] = []
    choices = [parse_choice("method", word) for word in words]
    assert list(by_label("methods", choices, method_label, said.append)) == labels
    assert said == [f"methods: {labels[0]} is named {len(words)} times and counts once"] * (len(labels) < len(words))


@pytest.mark.parametrize("case", SAME_MOVES)
def test_so_is_a_teleport(case: str) -> None:
    words, labels = SAME_MOVES[case]
    choices = [parse_choice("teleport", word) for word in words]
    assert list(by_label("teleports", choices, lambda c: teleport_label(c, DIGITS), print)) == labels


def test_what_is_named_twice_is_trained_and_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "toy:start=1", "--methods", "cagrad", "cagrad:c=0.4", "CAGrad", "ls", "--teleports", "cost"]
    words += ["Cost:max_drift=none", "--seeds", "0,0", "--epochs", "1", "--benchmark.steps_per_epoch", "3"]
    table = tmp_path / "records.csv"
    assert main([*words, "--out", str(tmp_path / "runs"), "--csv", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "methods: cagrad is named 3 times and counts once" in shown
    assert "teleports: cost is named 2 times and counts once" in shown
    found = [(each.method, each.way, each.seed) for each in read_records([table])]
    assert found == [("cagrad", "none", 0), ("ls", "none", 0), ("cagrad", "cost", 0), ("ls", "cost", 0)]


def test_each_cost_has_its_own_controls(tmp_path: Path) -> None:
    designs = (Choice("cost", {"max_drift": 0.01}), Choice("cost", {"trigger": Choice("always"), "htr": "transported"}))
    found = study(
        DIGITS,
        [Choice("ls")],
        seeds=(3,),
        out=tmp_path / "runs",
        teleports=(*designs, "random"),
        settings={"epochs": 3},
    )
    (row,) = found.rows
    assert row.ways == ("cost (max_drift 0.01)", "cost (trigger always, htr transported)")
    assert [row.controls(way) for way in row.ways] == [{"random": f"random as {way}"} for way in row.ways]
    by_way = {record.way: record for record in found.records if record.control}
    assert by_way[row.ways[1]].moves == 3  # one an epoch, at its first step
    options = [
        run.config.teleport.options
        for run in found.runs
        if run.config.teleport and run.config.teleport.name == "random"
    ]
    assert [(o["trigger"].name, o["htr"]) for o in options] == [("dominated", "keep"), ("always", "keep")]


def test_a_control_moves_when_a_run_with_a_budget_did(tmp_path: Path) -> None:
    """Every epoch before, at whatever step its trigger fired first."""
    settings = {"epochs": 16}
    design = Choice("cost", {"trigger": Choice("weak"), "budget": 0.5})
    found = study(DIGITS, [Choice("cagrad")], seeds=(0,), out=tmp_path, teleports=(design, "random"), settings=settings)
    moved = {run.config.teleport.name: run for run in found.runs if run.config.teleport is not None}
    steps = [event["step"] for event in moved["cost"].events if event.get("accepted")]
    assert 1 <= len(steps) < 16
    assert [event["step"] for event in moved["random"].events] == steps
    assert all(event["passes"] > 0 and event["ended"] for event in moved["cost"].events)


@pytest.mark.slow
def test_runs_in_other_processes_are_the_same(tmp_path: Path) -> None:
    chosen = [Choice("ls"), Choice("rlw")]
    alone = study(DIGITS, chosen, seeds=(0,), out=tmp_path / "one", settings={"epochs": 1})
    beside = study(DIGITS, chosen, seeds=(0,), out=tmp_path / "two", settings={"epochs": 1}, processes=2)
    runs = beside.runs
    assert [row.measure for row in alone.rows] == [row.measure for row in beside.rows]
    again = run_all([run.config for run in runs], tmp_path / "two", processes=2)
    assert [run.directory for run in again] == [run.directory for run in runs]
    assert all(RunDirectory.existing(run.directory).read_result() for run in again)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "toy:start=1", "--methods", "ls", "cagrad:c=0.5", "--seeds", "2", "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "runs")]) == 0
    text = capsys.readouterr().out
    assert "cagrad (c 0.5)" in text
    assert "toy start 1, 2 seeds" in text
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 4


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("benchmark", "digits", Choice("digits")),
        ("benchmark", "digits:shift=2,width=4", Choice("digits", {"shift": 2, "width": 4})),
        ("method", "famo:bound=-25.5", Choice("famo", {"bound": -25.5})),
        ("method", "famo:bound=[1, 2],gamma=none", Choice("famo", {"bound": [1.0, 2.0], "gamma": None})),
        ("method", "cagrad:c=1,paper_scale=true", Choice("cagrad", {"c": 1.0, "paper_scale": True})),
    ],
)
def test_choices_in_words(kind: KindName, text: str, expected: Choice) -> None:
    found = parse_choice(kind, text)
    assert found == expected
    assert [type(value) for value in found.options.values()] == [type(value) for value in expected.options.values()]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidParameterError, match="name:option=value"):
        parse_choice("method", "cagrad:c")
    with pytest.raises(UnknownNameError, match="Did you mean 'c'"):
        parse_choice("method", "cagrad:cc=1")
    with pytest.raises(InvalidParameterError, match="`c` must be a number, got 'much'"):
        parse_choice("method", "cagrad:c=much")
    assert main(["study", "digits", "--methods", "mgdaa"]) == 2
    assert "Did you mean 'mgda'" in capsys.readouterr().err
    with pytest.raises(UnknownNameError, match="unknown teleport 'jump'"):
        study(DIGITS, [Choice("ls")], seeds=(0,), out=tmp_path, teleports=("jump",))
    with pytest.raises(InvalidParameterError, match="`methods` and `seeds` must not be empty"):
        study(DIGITS, [], seeds=(0,), out=tmp_path)
    with pytest.raises(InvalidParameterError, match="`processes` must be"):
        run_all([], tmp_path, processes=0)
    assert list(tmp_path.iterdir()) == []


ALIKE: list[tuple[Any, Any]] = [
    (1.0, True),
    (1.0, "1.0"),
    (None, "None"),
    (["a", "b"], "['a', 'b']"),
    ("a, y 2", "a"),
    (["a, b"], ["a", "b"]),
    (0.1 + 0.2, 0.3),
    (1e-17 + 1.0, 1.0 + 2**-52),
    ("", None),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_options_that_look_alike_have_other_labels(
    one: Any, other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alike.py").write_text(
        "from typing import Any\n\n\nclass Alike:\n    def __init__(self, *, x: Any = 7, y: Any = 7):\n        pass\n\n"
        "    def weights(self, gramian):\n        return gramian[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "alike", raising=False)
    choices = [Choice("alike:Alike", {"x": value}) for value in (one, other)]
    choices.append(Choice("alike:Alike", {"x": "a", "y": 2}))
    labels = {method_label(choice) for choice in choices}
    assert len(labels) == 3
    said: list[str] = []
    assert len(by_label("methods", choices, method_label, said.append)) == 3
    assert said == []
