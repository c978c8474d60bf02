"""Records of a study, and what is said from them."""

from __future__ import annotations

import csv
import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

import mtl_benchmarks.studies.study as study_module
from mtl_benchmarks.benchmarks import Digits
from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.studies.against import against, too_few
from mtl_benchmarks.studies.records import Record, read_records, write_records
from mtl_benchmarks.studies.rows import StudyRow, rows_of
from mtl_benchmarks.studies.study import study
from mtl_benchmarks.studies.tables import print_study
from mtl_benchmarks.studies.verdict import holm, p_value, verdicts
from mtl_core import InvalidInputError, NonFiniteStateError

NAMES = ("accuracy_left", "accuracy_right", "error_image")


def record(method: str, way: str, seed: int, image: float, *, control: str = "", task: str = "") -> Record:
    values = dict(zip(NAMES, (80.0, 80.0, image), strict=True))
    if task:
        values = {name: value for name, value in values.items() if name.endswith(task)}
    return Record("digits", "", "0123abcd", task, method, way, control, seed, 0, 1.5, False, values)


SINGLE = [record("", "none", 0, 0.5, task=task) for task in ("left", "right", "image")]


def lost(which: Record) -> Record:
    return replace(which, values={}, diverged=True)


def test_rows_by_hand() -> None:
    # Both accuracies are those of the single tasks, so that Δm is a third of the error's relative loss:
    # (0.65 - 0.5) / 0.5 is 30 %, a third of it 10.
    joint = [
        record("ls", "none", 0, 0.65),
        record("ls", "none", 1, 0.8),
        record("ls", "cost", 0, 0.5),
        record("ls", "cost", 1, 0.65),
        record("ls", "cost", 0, 0.65, control="random"),
        lost(record("ls", "cost", 1, 0.0, control="random")),
    ]
    (row,) = rows_of([*SINGLE, *joint])
    assert row.metric is None
    assert row.ways == ("cost",)
    assert row.measure["none"] == pytest.approx({0: 10.0, 1: 20.0})
    assert row.measure["cost"] == pytest.approx({0: 0.0, 1: 10.0})
    # The one that diverged counts as the worst that did not.
    assert row.measure["random as cost"] == pytest.approx({0: 10.0, 1: 20.0})
    assert row.diverged == {"random as cost": [1]}
    console = Console(width=200, record=True)
    print_study([*SINGLE, *joint], console)
    text = console.export_text()
    assert "random as cost with seed 1" in text
    assert "digits, 2 seeds" in text


@pytest.mark.parametrize("method", ["ls", "mgda"])
def test_without_a_single_task_the_last_metric_stands(method: str) -> None:
    (row,) = rows_of([record(method, "none", 0, 0.4), *SINGLE[:2]])
    assert row.metric is not None
    assert row.metric.name == "error_image"
    assert row.measure == {"none": {0: 0.4}}


def test_differences_are_means_over_methods_by_seed() -> None:
    image = {
        ("ls", "none"): (0.65, 0.8, 0.5),
        ("ls", "cost"): (0.5, 0.65, 0.5),
        ("mgda", "none"): (0.5, 0.5, 0.65),
        ("mgda", "cost"): (0.8, 0.5, 0.5),
    }
    joint = [record(*key, seed, value) for key, values in image.items() for seed, value in enumerate(values)]
    (found,) = verdicts({"digits": rows_of([*SINGLE, *joint])})
    # ls: -10, -10, 0; mgda: +20, 0, -10.
    assert found.differences == pytest.approx((5.0, -5.0, -5.0))
    assert found.p == found.adjusted == pytest.approx(stats.ttest_1samp([5.0, -5.0, -5.0], 0.0).pvalue)
    assert not found.holds


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(lambda x: max(x) - min(x) > 1e-3))
def test_p_is_that_of_the_t_test(differences: list[float]) -> None:
    assert p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=1e-9, abs=1e-12)


def test_p_of_equal_differences() -> None:
    assert p_value([0.0, 0.0]) == 1.0
    assert p_value([-1.0, -1.0, -1.0]) == 0.0
    with pytest.raises(InvalidInputError, match="at least two seeds, got 1"):
        p_value([1.0])


def test_rounding_is_no_difference() -> None:
    # The same runs but for the order of sums: an error that differs in the seventh digit, the same way with each seed.
    joint = [record("ls", "none", seed, 0.65 + 0.05 * seed) for seed in (0, 1, 2)]
    joint += [record("ls", "cost", seed, (0.65 + 0.05 * seed) * (1 - 2.4e-7)) for seed in (0, 1, 2)]
    (verdict,) = verdicts({"digits": rows_of([*SINGLE, *joint])})
    assert verdict.differences == (0.0, 0.0, 0.0)
    assert (verdict.p, verdict.holds) == (1.0, False)
    moved = [replace(each, values={**each.values, "error_image": 0.6 + 0.05 * each.seed}) for each in joint[3:]]
    (verdict,) = verdicts({"digits": rows_of([*SINGLE, *joint[:3], *moved])})
    assert verdict.estimate.mean < -3.0
    assert verdict.holds


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_refuses_step_by_step(p: list[float]) -> None:
    """The adjusted values refuse what the procedure as written does: from the smallest on, until one holds."""
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    for level in (0.01, 0.05, 0.5):
        refused = set()
        for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
            if p[k] * (len(p) - rank) >= level:
                break
            refused.add(k)
        assert {k for k, value in enumerate(adjusted) if value < level} == refused


def test_a_family_is_all_benchmarks_and_references() -> None:
    def rows(by: float) -> list[Record]:
        noise = (0.001, -0.001, 0.002, -0.002)
        return [
            *SINGLE,
            *(record("ls", "none", s, 0.8) for s in range(4)),
            *(record("ls", "cost", s, 0.8 - by + noise[s]) for s in range(4)),
            *(record("ls", "cost", s, 0.8, control="random") for s in range(4)),
        ]

    found = verdicts({"a": rows_of(rows(0.3)), "b": rows_of(rows(0.0))})
    assert [(v.benchmark, v.reference) for v in found] == [
        (benchmark, reference) for benchmark in "ab" for reference in ("none", "random as cost")
    ]
    assert [v.holds for v in found] == [True, True, False, False]
    assert found[0].adjusted == pytest.approx(4 * found[0].p)
    assert found[1].adjusted == pytest.approx(4 * found[1].p)  # of equals, neither is below the other


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["ls", "fairgrad (alpha 2)"]), st.floats(0.1, 9.9)),
        min_size=1,
        unique_by=lambda x: x[:2],
    )
)
def test_records_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[int, str, float]]
) -> None:
    path = tmp_path_factory.mktemp("records") / "records.csv"
    records = [*SINGLE, *(record(method, "none", seed, value) for seed, method, value in found)]
    records.append(lost(record("ls", "cost", 9, 0.0)))
    write_records(path, records)
    assert read_records([path]) == records
    assert read_records([path, path]) == records


CHANGES = {
    "another column": (0, "seed", "seeds", "must begin with the columns"),
    "no number": (1, "1.500", "fast", "must hold numbers"),
    "neither": (1, "80.0,80.0,0.65", ",,", "both or neither"),
    "infinite": (1, "0.65", "inf", "finite"),
    "cells missing": (1, ",80.0,80.0,0.65", "", "cells"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_records_are_named(change: str, tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    write_records(path, [record("ls", "none", 0, 0.65)])
    line, old, new, words = CHANGES[change]
    lines = path.read_text().splitlines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new, 1)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidInputError, match=words) as error:
        read_records([path])
    assert "line 2" in str(error.value)
    assert str(path) in str(error.value)


def test_a_name_under_which_two_versions_had_other_options_is_no_one_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ("none", "cost")

    def table(name: str, seeds: tuple[int, ...], options: str) -> str:
        found = [record("cagrad", way, seed, 0.6 + 0.01 * seed) for way in ways for seed in seeds]
        return written(tmp_path, name, [replace(each, options=options) for each in found])

    first, same = table("a.csv", (0, 1), "0000aaaa"), table("b.csv", (2, 3), "0000aaaa")
    assert main(["verdict", first, same]) == 0
    for other in (table("c.csv", (2, 3), "0000bbbb"), table("d.csv", (2, 3), "")):
        assert main(["verdict", first, other]) == 2
        said = capsys.readouterr().err
        assert "`records` of 'cagrad' with 'none' must be of the same options, got digests 0000aaaa and" in said
        assert "complete runs are only read" in said
    with pytest.raises(InvalidInputError, match="in one way in all tables"):
        read_records([first, table("e.csv", (0, 1), "0000bbbb")])
    # Of one run that both have, the table that knows more counts.
    assert {each.options for each in read_records([first, table("f.csv", (0, 1), "")])} == {"0000aaaa"}


def test_tables_of_a_version_before_are_read(tmp_path: Path) -> None:
    records = [record("ls", "none", seed, 0.65) for seed in (0, 1)]
    lines = Path(written(tmp_path, "a.csv", records)).read_text().splitlines()
    place = lines[0].split(",").index("options")
    cut = [",".join(cell for k, cell in enumerate(line.split(",")) if k != place) for line in lines]
    (tmp_path / "old.csv").write_text("\n".join(cut) + "\n")
    assert read_records([tmp_path / "old.csv"]) == records


def test_a_study_records_all_options_also_those_that_names_leave_out(tmp_path: Path) -> None:
    """A class whose default is changed between two studies of different seeds, as a new version may change it."""
    text = """
import torch

class Tuned:
    def __init__(self, *, x: float = 1.0):
        self.x = x

    def weights(self, gramian):
        return self.x * torch.ones(len(gramian)) / len(gramian)
"""
    found: list[Record] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.syspath_prepend(Path(__file__).parent)
        for seed, module in enumerate((text, text.replace("1.0", "2.0"))):
            (tmp_path / "tuned.py").write_text(module)
            sys.modules.pop("tuned", None)
            importlib.invalidate_caches()
            patch.setattr(sys, "dont_write_bytecode", True)
            found += study(
                Choice("many_lines:Three"), [Choice("tuned:Tuned")], seeds=[seed], out=tmp_path / "runs"
            ).records
        sys.modules.pop("tuned", None)
    joint = [each for each in found if not each.task]
    assert {each.method for each in joint} == {"tuned:Tuned"}
    assert len({each.options for each in joint}) == 2
    with pytest.raises(InvalidInputError, match="must be of the same options"):
        rows_of(found)


def test_controls_of_runs_that_moved_and_that_did_not_are_of_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one of the seeds nothing moves, and the controls are the method alone."""
    control_of = study_module.control_of
    monkeypatch.setattr(
        study_module,
        "control_of",
        lambda name, run: None if run.config.seed == 1 and run.directory != Path() else control_of(name, run),
    )
    monkeypatch.syspath_prepend(Path(__file__).parent)
    found = study(
        Choice("sample_benchmarks:Lines"),
        [Choice("ls")],
        seeds=[0, 1],
        out=tmp_path / "runs",
        teleports=[Choice("cost", {"trigger": "weak", "max_steps": 1}), "random", "memory"],
        settings={"epochs": 1},
    )
    assert rows_of(found.records)
    by_way: dict[tuple[str, str], set[str]] = {}
    for each in found.records:
        if not each.task:
            by_way.setdefault((each.way, each.control), set()).add(each.options)
    assert all(len(options) == 1 for options in by_way.values())
    assert len({min(options) for options in by_way.values()}) == len(by_way) == 4


def test_two_tables_that_disagree(tmp_path: Path) -> None:
    for name, image in (("a.csv", 0.65), ("b.csv", 0.66)):
        write_records(tmp_path / name, [record("ls", "none", 0, image)])
    with pytest.raises(InvalidInputError, match="in one way in all tables"):
        read_records([tmp_path / "a.csv", tmp_path / "b.csv"])
    other = replace(record("ls", "none", 0, 0.66), protocol="ffff0000")
    with pytest.raises(InvalidInputError, match="one case and protocol"):
        rows_of([record("ls", "none", 0, 0.65), other])
    with pytest.raises(InvalidInputError, match="of one benchmark, got none"):
        write_records(tmp_path / "c.csv", [])
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InvalidInputError, match="empty file"):
        read_records([tmp_path / "empty.csv"])


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.csv"
    words = "study digits --benchmark.n_train 192 --benchmark.n_test 64 --epochs 1 --seeds 2 --teleports cost random"
    assert main([*words.split(), "--out", str(tmp_path / "runs"), "--csv", str(path)]) == 0
    first = capsys.readouterr().out
    assert main(["verdict", str(path)]) == 0
    again = capsys.readouterr().out
    assert again.strip()
    assert "All methods together" in again
    assert again.strip() in first
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["task"] for line in lines[:6]) == sorted(["left", "right", "image"] * 2)
    assert len(lines) == 12
    assert main(["verdict"]) == 2
    assert "`verdict` must be used as mtl-bench verdict RECORDS… [options], got no word." in capsys.readouterr().err
    assert main(["verdict", str(tmp_path / "no.csv")]) == 2
    assert "no.csv" in capsys.readouterr().err


MODULE = '''
import math
import torch
import mtl_core
from mtl_core.extension import Wrapper


class Breaks(Wrapper):
    """Parameters become infinite in the third step."""

    def __init__(self, method, *, at: int = 3) -> None:
        super().__init__(method)
        self.at, self.count = at, 0

    def own_state(self):
        return {"count": self.count}

    def load_own_state(self, state):
        self.count = state["count"]

    def step(self, problem, batch, optimizer, *, options=mtl_core.StepOptions()):
        report = mtl_core.step(problem, batch, optimizer, self.method)
        self.count += 1
        if self.count == self.at:
            with torch.no_grad():
                problem.shared[0].fill_(math.inf)
        return report
'''


def test_a_run_that_ends_with_a_metric_that_is_none_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = Digits.metrics_from

    def overflowing(self: Digits, tally: Any) -> Any:
        return {split: {**row, "error_image": math.inf} for split, row in evaluated(self, tally).items()}

    monkeypatch.setattr(Digits, "metrics_from", overflowing)
    digits = Choice("digits", {"n_train": 64, "n_test": 64})
    found = study(digits, [Choice("ls")], seeds=(0,), out=tmp_path / "runs", settings={"epochs": 1})
    assert {record.task: record.diverged for record in found.records} == {
        "left": False, "right": False, "image": True, "": True
    }  # fmt: skip
    write_records(tmp_path / "records.csv", found.records)
    assert [r.values for r in read_records([tmp_path / "records.csv"])] == [r.values for r in found.records]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_diverges_does_not_end_the_others(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaking.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    settings = {"epochs": 1}
    digits = Choice("digits", {"n_train": 192, "n_test": 64})
    found = study(
        digits,
        [Choice("ls")],
        seeds=(0, 1),
        out=tmp_path / "runs",
        teleports=("breaking:Breaks",),
        settings=settings,
        processes=processes,
    )
    (row,) = found.rows
    assert row.diverged == {"breaking:Breaks": [0, 1]}
    worst = max(row.measure["none"].values())
    assert row.measure["breaking:Breaks"] == {0: worst, 1: worst}
    # Where nobody spares it, it ends the others as before.
    config = RunConfig.resolve(digits, "ls", Choice("breaking:Breaks"), seed=0, **settings)
    said: list[str] = []
    with pytest.raises(NonFiniteStateError):
        run_all([config], tmp_path / "runs", processes=processes, say=said.append)
    assert "has stopped before" in said[0]
    assert not said[0].endswith("..")
    sys.modules.pop("breaking", None)


def written(folder: Path, name: str, records: list[Record]) -> str:
    write_records(folder / name, records)
    return str(folder / name)


def said_by(capsys: pytest.CaptureFixture[str], *paths: str) -> str:
    assert main(["verdict", *paths]) == 0
    return capsys.readouterr().out


def test_a_verdict_does_not_depend_on_the_order_of_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second table has a method, a way and a seed that the first has not."""
    first = [*SINGLE, *(record("mgda", "none", seed, 0.6 + 0.01 * seed) for seed in (0, 1))]
    second = [record("ls", way, seed, 0.7 - 0.02 * seed) for way in ("none", "cost") for seed in (0, 1, 2)]
    second += [record("ls", "cost", seed, 0.7, control="random") for seed in (0, 1, 2)]
    paths = written(tmp_path, "a.csv", first), written(tmp_path, "b.csv", second)
    shown = said_by(capsys, *paths)
    assert said_by(capsys, *reversed(paths)) == shown
    assert shown.splitlines()[3].split()[4] == "ls"  # what methods are held against, below "minus"
    text = " ".join(shown.split())
    assert "Not over all methods: cost on digits over ls, as mgda has no such runs." in text
    assert "Means are over the seeds that there are: mgda without seed 2." in text


def test_seeds_that_not_all_methods_have_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint = [record(m, w, seed, 0.6) for m in ("ls", "mgda") for w in ("none", "cost") for seed in (0, 1, 2)]
    joint = [each for each in joint if (each.method, each.way, each.seed) != ("mgda", "cost", 2)]
    text = " ".join(said_by(capsys, written(tmp_path, "a.csv", [*SINGLE, *joint])).split())
    assert "Left out are seeds that not all of these have: cost against none on digits, seed 2." in text
    few = [each for each in joint if each.seed in (0, 2)]
    text = " ".join(said_by(capsys, written(tmp_path, "a.csv", [*SINGLE, *few])).split())
    assert "Not tested, as fewer than two seeds are common: cost against none on digits." in text


WITHOUT = {
    "a method alone": ([record("ls", "none", 0, 0.6), record("mgda", "cost", 0, 0.6)], "every method alone"),
    "any alone": ([*SINGLE, record("ls", "cost", 0, 0.6)], "every method alone"),
    "joint runs": (SINGLE, "there are runs of single tasks only"),
    "numbers": ([*SINGLE, lost(record("ls", "none", 0, 0.6))], "all of them diverged"),
    "a row": ([], "got one without a run"),
    "one set of tasks": (
        [record("ls", "none", 0, 0.6), replace(record("ls", "none", 1, 0.6), values={"accuracy_left": 80.0})],
        "must be of the same tasks",
    ),
}


@pytest.mark.parametrize("without", WITHOUT)
def test_tables_without_something_are_one_error(
    without: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, words = WITHOUT[without]
    path = written(tmp_path, "a.csv", records or SINGLE)
    if not records:
        (tmp_path / "a.csv").write_text((tmp_path / "a.csv").read_text().splitlines()[0] + "\n")
    assert main(["verdict", path]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_what_is_no_table_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\xff\xfe")
    assert main(["verdict", str(tmp_path / "picture.png")]) == 2
    assert "must be a table of records, got another file" in capsys.readouterr().err


def test_runs_on_other_tasks_have_another_protocol_and_threads_have_not(tmp_path: Path) -> None:
    digits = Choice("digits", {"n_train": 64, "n_test": 32})

    def protocols(**settings: Any) -> set[str]:
        found = study(digits, [Choice("ls")], seeds=(0,), out=tmp_path / "runs", settings={"epochs": 1, **settings})
        return {each.protocol for each in found.records}

    (all_of_them,) = protocols()
    (pair,) = protocols(tasks=["left", "right"])
    assert pair != all_of_them
    assert protocols(tasks=["image", "right", "left"]) == {all_of_them}
    assert protocols(threads=2) == {all_of_them}


class TestMethodsAgainstOthers:
    """Methods without teleports, tested together."""

    ERRORS: ClassVar = {"ls": (0.8, 0.85, 0.8), "mgda": (0.65, 0.55, 0.5), "famo": (0.8, 0.8, 0.95), "gls": (0.5,)}

    def records(self) -> list[Record]:
        found = [record(name, "none", s, image) for name, all_ in self.ERRORS.items() for s, image in enumerate(all_)]
        return [*SINGLE, *found, *(record("ls", "cost", seed, 0.5) for seed in range(3))]

    def test_by_hand(self) -> None:
        # Δm is a third of the error's relative loss against 0.5: 20, 70/3, 20 for ls; 10, 10/3, 0; 20, 20, 30.
        found = against({"digits": rows_of(self.records())}, ["ls"])
        assert [(test.method, test.reference) for test in found] == [("mgda", "ls"), ("famo", "ls")]
        mgda, famo = found
        assert mgda.differences == pytest.approx({0: -10.0, 1: -20.0, 2: -20.0})
        assert famo.differences == pytest.approx({0: 0.0, 1: -10 / 3, 2: 10.0})
        for test in found:
            assert test.p == pytest.approx(stats.ttest_1samp(list(test.differences.values()), 0.0).pvalue)
        assert mgda.p < famo.p
        assert mgda.adjusted == pytest.approx(2 * mgda.p)
        assert famo.adjusted == pytest.approx(famo.p)
        assert (mgda.holds, famo.holds) == (False, False)
        assert too_few({"digits": rows_of(self.records())}, ["ls"]) == ["gls against ls on digits"]

    def test_a_family_is_all_pairs_that_are_asked_for(self) -> None:
        rows = rows_of(self.records())
        found = against({"a": rows, "b": rows}, ["ls", "famo"], methods=["mgda", "ls"])
        assert [(test.benchmark, test.method, test.reference) for test in found] == [
            (name, *pair) for name in "ab" for pair in (("mgda", "ls"), ("mgda", "famo"), ("ls", "famo"))
        ]
        assert found[0].adjusted == pytest.approx(6 * min(test.p for test in found))

    def test_a_comparison_counts_once(self) -> None:
        rows = {"digits": rows_of(self.records())}
        (test,) = against(rows, ["ls"], methods=["mgda"])
        for references, methods in ((["ls", "ls"], ["mgda", "mgda"]), (["ls", "mgda"], ["mgda", "ls"])):
            assert against(rows, references, methods=methods) == [test]

    def test_a_measure_of_which_more_is_better_is_turned(self) -> None:
        metric = next(metric for metric in Digits.metrics if metric.higher_is_better)
        rows = [StudyRow(name, {"none": by_seed}, {}, metric=metric) for name, by_seed in self.SHARES.items()]
        (test,) = against({"digits": rows}, ["ls"])
        assert test.differences == {0: -2.0, 1: -4.0}

    SHARES: ClassVar = {"ls": {0: 80.0, 1: 80.0}, "mgda": {0: 82.0, 1: 84.0}}

    @pytest.mark.parametrize("argument", ["references", "methods"])
    def test_a_name_that_no_run_has(self, argument: str) -> None:
        words = {"references": ["ls"], "methods": ["mgda"]} | {argument: ["cagrad"]}
        with pytest.raises(InvalidInputError, match=f"`{argument}` must be methods of the study.*'gls', got 'cagrad'"):
            against({"digits": rows_of(self.records())}, words["references"], methods=words["methods"])

    def test_by_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        table = written(tmp_path, "a.csv", self.records())
        assert main(["verdict", table, "--against", "ls", "famo", "--methods", "MGDA"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "digits Δm % ↓ mgda ls 3 -16.67 ±14.34" in said
        assert "digits Δm % ↓ mgda famo 3" in said
        assert "2 test(s) are one family. After the correction better: nothing; worse: nothing." in said
        assert "fewer than two seeds" not in said
        for one, other, what in (("mgda", "ls", "better"), ("ls", "mgda", "worse")):
            assert main(["verdict", table, "--against", other, "--methods", one]) == 0
            assert f"{what}: {one} against {other} on digits" in " ".join(capsys.readouterr().out.split())
        assert main(["verdict", table, "--against", "ls"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "fewer than two seeds are common: gls against ls on digits." in said
        assert main(["verdict", table, "--methods", "mgda"]) == 2
        assert "must stand beside --against, got mgda alone" in capsys.readouterr().err
        assert main(["verdict", table, "--against", "cagrad"]) == 2
        assert "`--against` must name methods of the tables, which have famo, gls, ls, mgda" in capsys.readouterr().err
        assert main(["verdict", table, "--against", "ls", "--methods", "ls"]) == 2
        assert "two methods that some benchmark has both, got ls and ls over digits" in capsys.readouterr().err
        assert main(["verdict", table, "--against", "nosuch"]) == 2
        assert "nosuch" in capsys.readouterr().err
