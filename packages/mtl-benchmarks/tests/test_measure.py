"""One rule says what stands for a run, in studies, comparisons, verdicts, pages, tables and figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_benchmarks import Digits
from mtl_benchmarks.cli import main
from mtl_benchmarks.comparison import Estimate, compare, find_runs, paired_table, result_table
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.figures.outcome import has_front, time_and_measure
from mtl_benchmarks.metrics import delta_m
from mtl_benchmarks.runs import pool
from mtl_benchmarks.runs.measure import measure_of
from mtl_benchmarks.runs.runner import RunResult, run
from mtl_benchmarks.storage.results import RunDirectory
from mtl_benchmarks.studies.ablation import ablate
from mtl_benchmarks.studies.records import Record
from mtl_benchmarks.studies.rows import rows_of
from mtl_benchmarks.studies.study import study
from mtl_benchmarks.studies.variants import Variant
from mtl_core import NonFiniteStateError

TASKS = {"left": "accuracy_left", "right": "accuracy_right", "image": "error_image"}
TINY = ["--benchmark.n_train", "96", "--benchmark.n_test", "32", "--epochs", "1"]
DIGITS = Choice("digits", {"n_train": 96, "n_test": 32})
FULL = {"accuracy_left": 90.0, "accuracy_right": 80.0, "error_image": 0.2}


def result(method: str, seed: int, values: dict[str, float], tasks: Sequence[str] | None = None) -> RunResult:
    config = RunConfig.resolve("digits", method, seed=seed, tasks=tasks)
    return RunResult(config, Path("nowhere"), values, (), 1.0)


def record(run: RunResult) -> Record:
    """What a study keeps of a run."""
    task = run.config.tasks[0] if run.config.is_single_task else ""
    lost = not all(map(math.isfinite, run.values.values()))
    method = "" if task else run.config.method.name
    return Record(
        "digits", "", "0", task, method, "none", "", run.config.seed, 0, 1.0, lost, {} if lost else run.values
    )


singles = st.fixed_dictionaries(
    {
        task: st.dictionaries(st.integers(0, 2), st.sampled_from([0.0, 0.5, -0.5, 40.0, math.nan]), max_size=3)
        for task in TASKS
    }
)
joint = st.dictionaries(st.sampled_from(["ls", "mgda"]), st.sets(st.integers(0, 2), min_size=1), min_size=1)


@given(singles, joint)
def test_studies_and_comparisons_say_the_same(found: dict[str, dict[int, float]], methods: dict[str, set[int]]) -> None:
    runs = [result(method, seed, FULL) for method, seeds in methods.items() for seed in seeds]
    runs += [
        result("ls", seed, {TASKS[task]: value}, [task]) for task, each in found.items() for seed, value in each.items()
    ]
    rows = {row.name: row for row in rows_of([record(run) for run in runs])}
    (comparison,) = [each for each in compare(runs) if each.full]
    values = [each for by_seed in found.values() for each in by_seed.values()]
    means = {task: math.fsum(each.values()) for task, each in found.items()}
    there_is = all(found.values()) and all(map(math.isfinite, values)) and all(means.values())
    for group in comparison.full:
        row = rows[group.label]
        assert (row.metric is None) == there_is == bool(comparison.baselines)
        if there_is:
            assert row.measure["none"] == group.deltas
            for run in group.runs:
                assert group.deltas[run.config.seed] == delta_m(run.values, comparison.baselines)
        else:
            assert group.deltas == {}
            assert row.measure["none"] == dict.fromkeys(methods[group.label], 0.2)
            assert comparison.measure.metric == row.metric


WHY: dict[str, tuple[dict[str, dict[int, float]], str]] = {
    "none": ({}, "there are no single-task runs of the same protocol"),
    "some": ({"accuracy_left": {0: 1.0}}, "there is no single-task run of right, image"),
    "diverged": (
        {"accuracy_left": {0: math.nan, 3: 1.0}, "accuracy_right": {1: 1.0}, "error_image": {2: math.inf, 0: math.nan}},
        "the single-task run of left with seed 0 and of image with seeds 0, 2 diverged",
    ),
    "zero": (
        {"accuracy_left": {0: 0.0}, "accuracy_right": {0: -1.0, 1: 1.0}, "error_image": {0: 0.0, 1: 1.0}},
        "the single-task value of accuracy_left, accuracy_right is 0",
    ),
}


@pytest.mark.parametrize("case", WHY)
def test_why_there_is_no_delta_is_said(case: str) -> None:
    found, why = WHY[case]
    measure = measure_of(Digits.metrics, found, tasks=Digits.tasks, known=FULL)
    assert (measure.why, measure.baselines) == (why, ())
    assert measure.note == f"No Δm, as {why}: error_image stands for a run."


def test_what_is_measured_without_the_last_task_is_the_same_in_figures() -> None:
    runs = [result(m, 0, {"accuracy_left": 9.0, "accuracy_right": 8.0}, ["left", "right"]) for m in ("ls", "mgda")]
    (comparison,) = compare(runs)
    (row, _) = rows_of([record(run) for run in runs])
    assert row.metric == comparison.measure.metric
    assert comparison.measure.metric is not None
    assert comparison.measure.metric.name == "accuracy_right"
    assert has_front(comparison)
    assert time_and_measure(comparison).axes[0].get_ylabel().startswith("accuracy right")


def test_means_over_fewer_seeds_are_named() -> None:
    runs = [result("ls", seed, FULL) for seed in (0, 1, 2)] + [result("mgda", seed, FULL) for seed in (0, 2)]
    (comparison,) = compare(runs)
    said = "Means are over the seeds that there are: mgda without seed 1."
    assert said in result_table(comparison).notes


def stopping(which: Callable[[RunConfig], bool]) -> Callable[..., RunResult]:
    """``run``, but those that are chosen stop as if their numbers had become none."""

    def stops(config: RunConfig, directory: Path, **more: Any) -> RunResult:
        if not which(config):
            return run(config, directory, **more)
        files = RunDirectory(directory)
        with files.working(config.as_dict()):
            files.write_stopped({"epoch": 0, "step": 1, "what": "in epoch 0, step 1"})
        raise NonFiniteStateError(f"the run in {str(directory)!r} must stay finite")

    return stops


def seen(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("lost", ["single", "joint"])
def test_a_run_that_stops_is_named_wherever_runs_are_read(
    lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, label = (("image",), "single image") if lost == "single" else (("left", "right", "image"), "mgda")
    method = "ls" if lost == "single" else "mgda"
    monkeypatch.setattr(pool, "run", stopping(lambda c: (c.seed, c.tasks, c.method.name) == (1, tasks, method)))
    out, table = tmp_path / "runs", tmp_path / "records.csv"
    words = ["study", "digits", *TINY, "--methods", "ls", "mgda", "--seeds", "2", "--out", str(out)]
    assert main([*words, "--csv", str(table)]) == 0
    shown = seen(capsys.readouterr().out)
    why = "No Δm, as the single-task run of image with seed 1 diverged"
    named = f"Diverged, so that there is no mean: {label} with seed 1."
    worst = "Diverged, and counted as the worst run that did not: mgda with seed 1."
    assert named in shown
    assert (shown.count(why) == 2) == (lost == "single")  # below both tables
    assert (worst in shown) == (lost == "joint")
    assert main(["verdict", str(table)]) == 0
    again = seen(capsys.readouterr().out)
    assert (why in again) == (lost == "single")
    assert (worst in again) == (lost == "joint")
    # What was printed beside the training is what is printed of the directories.
    for form in ("text", "markdown", "csv"):
        assert main(["compare", str(out), "--format", form, "--figures", str(tmp_path / "figures")]) == 0
        printed = capsys.readouterr()
        assert named in seen(printed.out + printed.err)
        assert (why in seen(printed.out + printed.err)) == (lost == "single")
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert named in page
    assert (why in page) == (lost == "single")
    assert "is not finished and is left out" not in page
    (stopped,) = [each for each in find_runs([out])[0] if each.stopped]
    assert stopped.stopped == "in epoch 0, step 1"
    assert set(map(math.isnan, stopped.values.values())) == {True}


def test_an_ablation_goes_on_past_a_variant_that_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run", stopping(lambda config: config.teleport is not None))
    said: list[str] = []
    rows = ablate(
        DIGITS,
        Choice("ls"),
        [Variant("alone", None), Variant("cost", Choice("cost"))],
        seeds=(0,),
        out=tmp_path / "runs",
        settings={"epochs": 1},
        progress=said.append,
    )
    assert math.isfinite(rows[0].measure[0])
    assert math.isnan(rows[1].measure[0])
    assert "ls + cost, seed 0 diverged, in epoch 0, step 1" in said


def test_a_study_of_which_every_run_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run", stopping(lambda config: not config.is_single_task))
    found = study(DIGITS, [Choice("ls")], seeds=(0,), out=tmp_path, settings={"epochs": 1})
    with pytest.raises(ValueError, match="got none of digits: all of them diverged"):
        _ = found.rows


@pytest.mark.parametrize("kind", ["metric", "delta"])
def test_what_rounding_makes_is_no_difference_and_no_rank(kind: str) -> None:
    """Runs that are the same but for the order of sums: an error that differs in the seventh digit with every seed."""
    near = {**FULL, "error_image": 0.2 * (1 + 2.4e-7)}
    runs = [result(m, seed, values) for m, values in (("ls", FULL), ("mgda", near)) for seed in (0, 1)]
    if kind == "delta":
        runs += [result("ls", 0, {name: FULL[name]}, [task]) for task, name in TASKS.items()]
    rows = rows_of([record(run) for run in runs])
    assert set(rows[1].minus_method(rows[0]).values()) == {0.0}
    (comparison,) = compare(runs)
    ranks = [row.cells["mean_rank"] for row in result_table(comparison).rows if "mean_rank" in row.cells]
    assert ranks == [1.0, 1.0]
    table = paired_table(comparison)
    assert table is not None
    for cell in table.rows[0].cells.values():
        assert not isinstance(cell, Estimate) or (cell.mean, cell.half_width) == (0.0, 0.0)
