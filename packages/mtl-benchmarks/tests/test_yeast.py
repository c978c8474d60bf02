"""Yeast, on a table that is written here in river's form, and on river's own where it is installed."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_benchmarks import Choice, RunConfig, run
from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.tally import combined
from mtl_benchmarks.benchmarks.yeast import Yeast
from mtl_benchmarks.benchmarks.yeast_table import read_yeast, yeast_file
from mtl_benchmarks.command_line import parse_run
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.models import CGC, MMoE
from mtl_benchmarks.models.declaration import check_declaration, count
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, UnknownNameError, collect

IS_INSTALLED = importlib.util.find_spec("river") is not None
SMALL: dict[str, Any] = {"n_train": 30, "n_validation": 20, "n_test": 20, "width": 8}
COLUMNS = [*(f"Att{k}" for k in range(1, 104)), *(f"Class{k}" for k in range(1, 15))]


def write_table(file: Path, edit: Callable[[list[list[str]]], None] = lambda rows: None, n: int = 80) -> Path:
    draw = random.Random(0)
    rows = [list(COLUMNS)]
    for _ in range(n):
        features = [draw.gauss(0, 0.1) for _ in range(103)]
        labels = [int(features[k] > draw.gauss(0, 0.05)) for k in range(14)]
        rows.append([*(f"{value:.6f}" for value in features), *map(str, labels)])
    edit(rows)
    with gzip.open(file, "wt", newline="") as text:
        csv.writer(text).writerows(rows)
    return file


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "extras" not in request.keywords:
        file = write_table(tmp_path / "yeast.csv.gz")
        monkeypatch.setattr("mtl_benchmarks.benchmarks.yeast.yeast_file", lambda: file)


def logits_of(yeast: Yeast, model: nn.Module, features: Tensor) -> Tensor:
    outputs: dict[str, Tensor] = model(features)
    return torch.cat([outputs[task] for task in yeast.tasks], 1).detach()


# --- data ------------------------------------------------------------------------------------------------------------


def test_splits_share_nothing_and_are_scaled_by_the_genes_for_training() -> None:
    yeast = Yeast(**SMALL)
    parts = {split: yeast.data(split) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert {split: len(part) for split, part in parts.items()} == {"train": 30, "validation": 20, "test": 20}
    rows = torch.cat([part.features for part in parts.values()])
    assert len(rows.unique(dim=0)) == 70
    torch.testing.assert_close(parts["train"].features.mean(0), torch.zeros(103), atol=1e-5, rtol=0)
    torch.testing.assert_close(parts["train"].features.std(0, correction=0), torch.ones(103), atol=1e-5, rtol=0)
    torch.manual_seed(5)
    assert Yeast(**SMALL).data("test").features.equal(parts["test"].features)
    assert not Yeast(**SMALL, data_seed=1).data("test").features.equal(parts["test"].features)


def _constant(rows: list[list[str]]) -> None:
    for row in rows[1:]:
        row[0] = "0.5"


def test_a_measurement_that_never_changes_is_no_division_by_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_table(tmp_path / "constant.csv.gz", _constant)
    monkeypatch.setattr("mtl_benchmarks.benchmarks.yeast.yeast_file", lambda: file)
    assert not Yeast(**SMALL).data("train").features[:, 0].any()


def _set(row: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    def edit(rows: list[list[str]]) -> None:
        rows[row][column] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_set(0, 3, "Att9"), "must have the columns Att1 to Att103 and Class1 to Class14, got 117 columns from 'Att1'"),
        (lambda rows: rows.clear(), "got none"),
        (_set(2, 5, "much"), "line 3, cannot be read: could not convert string to float: 'much'"),
        (_set(2, 5, "nan"), "line 3, must hold 117 finite numbers, got 'nan' among 117"),
        (_set(2, 5, "9" * 200_000), "must be a whole gzip file of a table, got: field larger than field limit"),
        (_set(4, 110, "2"), "line 5, must have labels 0 or 1"),
        (lambda rows: rows[7].pop(), "line 8, must hold 117 finite numbers, got 116"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, edit: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        read_yeast(write_table(tmp_path / "bad.csv.gz", edit))


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = write_table(tmp_path / "yeast.csv.gz")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InvalidInputError, match=r"must be a whole gzip file.*Install river again"):
        read_yeast(file)


def test_a_table_without_its_last_newline_loses_nothing(tmp_path: Path) -> None:
    file = write_table(tmp_path / "yeast.csv.gz")
    whole = read_yeast(file)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).rstrip(b"\r\n")))
    assert read_yeast(file).equal(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": 60}, r"at most 80, the genes there are, got 60 \+ 20 \+ 20 = 100"),
        ({"n_test": 1}, "`n_test` must be enough for a gene with and one without each class, got 1 genes"),
        ({"width": 0}, "`width`"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        Yeast(**{**SMALL, **options}).data("train")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install river=="):
        yeast_file()


# --- losses and metrics ----------------------------------------------------------------------------------------------


def test_losses_and_metrics_by_hand() -> None:
    yeast = Yeast(**SMALL)
    model = yeast.build()
    data = yeast.data("test")
    logits = logits_of(yeast, model, data.features)
    losses = yeast.problem(model, tasks=("class2", "class9")).losses(data)
    for value, k in zip(losses.values.detach(), (1, 8), strict=True):
        chance = logits[:, k].double().sigmoid()
        label = data.labels[:, k].double()
        assert float(value) == pytest.approx(
            -float((label * chance + (1 - label) * (1 - chance)).log().mean()), rel=1e-5
        )
    positive, negative = logits[data.labels[:, 3] > 0, 3], logits[data.labels[:, 3] == 0, 3]
    wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    found = yeast.evaluate(model, device="cpu")
    assert found["test"]["auc_class4"] == pytest.approx(100 * float(wins.mean()))
    parts = [yeast.tally(model, device="cpu", part=Part(k, 3)) for k in range(3)]
    added = yeast.metrics_from(combined(parts))
    assert {split: dict(row) for split, row in added.items()} == {
        split: pytest.approx(row) for split, row in found.items()
    }


# --- architectures ---------------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "hardsharing": {},
    "mmoe": {"n_experts": 3},
    "cgc": {"n_shared": 2},
    "ple": {},
    "dselectk": {"n_experts": 4, "k": 2},
    "crossstitch": {},
    "mtan": {},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_by_name(name: str) -> None:
    choice = RunConfig.resolve(Choice("yeast", {**SMALL, "model": Choice(name, ARCHITECTURES[name])})).benchmark
    yeast = make_benchmark(choice)
    assert isinstance(yeast, Yeast)
    model = yeast.build()
    check_declaration(model)
    problem = yeast.problem(model, tasks=yeast.tasks)
    losses = problem.losses(yeast.data("train"))
    rows = collect(
        dict(zip(losses.tasks, losses.outputs, strict=True)), problem.shared, features=losses.features
    ).matrix
    assert len(problem.shared) > 0
    assert bool((rows.norm(dim=1) > 0).all())
    assert bool(torch.isfinite(logits_of(yeast, model, yeast.data("test").features)).all())


def test_options_of_an_architecture_are_words_of_the_command() -> None:
    words = "yeast --model mmoe --model.n_experts 5 --benchmark.n_train 30 --benchmark.n_test 20 --benchmark.width 4"
    yeast = make_benchmark(parse_run(words.split()).configs[0].benchmark)
    model = yeast.build()
    assert isinstance(model, MMoE)
    assert len(model.experts) == 5
    expert = 104 * 4 + 5 * 4
    assert count(model.shared_parameters()) == 5 * expert
    assert count(model.task_parameters("class1")) == 104 * 5 + 5
    # The command line names what an architecture wants besides.
    with pytest.raises(InvalidParameterError, match="`n_experts` must be given for model 'mmoe'"):
        RunConfig.resolve(Choice("yeast", {"model": "mmoe"}))
    with pytest.raises(InvalidParameterError, match="model 'overlaycnn' must take heads"):
        RunConfig.resolve(Choice("yeast", {"model": "overlaycnn"}))
    with pytest.raises(UnknownNameError, match="gate_inputs"):
        RunConfig.resolve(Choice("yeast", {"model": Choice("cgc", {"gate_inputs": 3})}))


def test_no_expert_shared_is_one_network_per_task() -> None:
    yeast = make_benchmark(
        RunConfig.resolve(Choice("yeast", {**SMALL, "model": Choice("cgc", {"n_shared": 0})})).benchmark
    )
    model = yeast.build()
    assert isinstance(model, CGC)
    assert count(model.shared_parameters()) == 0


def test_a_run_reports_its_best_epoch_on_the_validation_set(tmp_path: Path) -> None:
    found = run(RunConfig.resolve(Choice("yeast", SMALL), "fairgrad", epochs=4, batch_size=10), tmp_path / "run")
    by_epoch: dict[int, dict[str, list[float]]] = {}
    with (tmp_path / "run" / "metrics.csv").open() as lines:
        for row in csv.DictReader(lines):
            if row["metric"].startswith("auc_"):
                by_epoch.setdefault(int(row["epoch"]), {}).setdefault(row["split"], []).append(float(row["value"]))
    best = max(by_epoch, key=lambda epoch: sum(by_epoch[epoch]["validation"]))
    assert list(found.values.values()) == by_epoch[best]["test"]


# --- the real table --------------------------------------------------------------------------------------------------


@pytest.mark.extras
@pytest.mark.skipif(not IS_INSTALLED, reason="the package river is not installed")
def test_the_real_table() -> None:
    table = read_yeast(yeast_file())
    assert tuple(table.shape) == (2417, 117)
    positives = [762, 1038, 983, 862, 722, 597, 428, 480, 178, 253, 289, 1816, 1799, 34]
    assert table[:, 103:].sum(0).tolist() == positives


@pytest.mark.extras
@pytest.mark.skipif(not IS_INSTALLED, reason="the package river is not installed")
def test_a_run_on_the_real_table_learns(tmp_path: Path) -> None:
    values = run(RunConfig.resolve(Choice("yeast", {"width": 16}), epochs=3), tmp_path / "run").values
    assert sum(values.values()) / 14 > 60.0
