"""MovieLens-100K, on tables that are written here in recbole's form, and on its own where it is installed."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_benchmarks import Choice, RunConfig, run
from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.tally import combined
from mtl_benchmarks.benchmarks.movielens import MovieLens
from mtl_benchmarks.benchmarks.movielens_files import FIELDS, movielens_files, read_movielens
from mtl_benchmarks.models import SharedTower
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, collect

IS_INSTALLED = importlib.util.find_spec("recbole") is not None
SMALL: dict[str, Any] = {"n_train": 120, "n_validation": 30, "n_test": 40, "embedding": 2, "width": 4}

USERS = ["1\t24\tM\ttechnician\t85711", "2\t53\tF\tother\t94043", "3\t29\tM\tother\t32067"]
FILMS = ["7\tToy Story\t1995\tAnimation Children's Comedy", "9\tGoldenEye\t1995\tAction", "4\tOld\t1939\tDrama",
         "5\tUnknown\tV\tunknown"]  # fmt: skip


def write_tables(folder: Path, ratings: list[str] | None = None, *, users: list[str] = USERS) -> list[Path]:
    if ratings is None:
        draw = random.Random(0)
        ratings = [
            f"{draw.choice('123')}\t{draw.choice('7945')}\t{draw.randint(1, 5)}\t{881250949 + k}" for k in range(200)
        ]
    heads = (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    )
    files = [folder / f"ml-100k.{kind}" for kind in ("inter", "user", "item")]
    for file, head, lines in zip(files, heads, (ratings, users, FILMS), strict=True):
        file.write_text("\n".join([head, *lines]))  # and no last newline
    return files


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "extras" not in request.keywords:
        found = write_tables(tmp_path)
        monkeypatch.setattr("mtl_benchmarks.benchmarks.movielens.movielens_files", lambda: found)


# --- data ------------------------------------------------------------------------------------------------------------


def test_ratings_by_hand(tmp_path: Path) -> None:
    ratings, sizes = read_movielens(write_tables(tmp_path, ["2\t4\t5\t1", "1\t7\t3\t2", "3\t5\t1\t3", "2\t9\t4\t4"]))
    assert ratings.stars.tolist() == [5, 3, 1, 4]
    columns = dict(zip(FIELDS, ratings.fields.T.tolist(), strict=True))
    assert columns == {
        "user": [0, 1, 2, 0],
        "film": [0, 1, 2, 3],
        "age": [0, 1, 1, 0],  # 53, then 24 and 29
        "gender": [0, 1, 1, 0],
        "occupation": [0, 1, 0, 0],
        "decade": [0, 1, 2, 1],  # 1939, 1995, no number, 1995
        "genre": [0, 1, 2, 3],
    }
    assert sizes == {"user": 3, "film": 4, "age": 2, "gender": 2, "occupation": 2, "decade": 3, "genre": 4}


def test_splits_share_nothing() -> None:
    lens = MovieLens(**SMALL)
    lens.data("train").stars[:] = torch.arange(120.0)  # a part is a copy: the others do not see it
    assert float(lens.data("test").stars.max()) <= 5
    sizes = {split: len(lens.data(split)) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert sizes == {"train": 120, "validation": 30, "test": 40}
    again, other = MovieLens(**SMALL), MovieLens(**SMALL, data_seed=1)
    assert again.data("test").fields.equal(lens.data("test").fields)
    assert not other.data("test").fields.equal(lens.data("test").fields)


@pytest.mark.parametrize(
    ("ratings", "says"),
    [
        (["1\t7\t6\t0"], r"ml-100k\.inter, line 2, must have a rating from 1 to 5, got '6'"),
        (["1\t7\t4\t0", "1\t8\t4\t0"], "line 3, must name a film that is listed, got '8'"),
        (["4\t7\t4\t0"], "line 2, must name a user that is listed, got '4'"),
        (["1\t7\t4"], "line 2, must have 4 cells, got 3"),
    ],
)
def test_damaged_ratings_are_refused(tmp_path: Path, ratings: list[str], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        read_movielens(write_tables(tmp_path, ratings))


def _other_head(files: list[Path]) -> None:
    files[1].write_text("user_id:token\tage\n")


def _no_text(files: list[Path]) -> None:
    files[2].write_bytes(b"\xff\xfe\x00")


def _twice(place: int, line: str) -> Callable[[list[Path]], None]:
    def add(files: list[Path]) -> None:
        files[place].write_text(files[place].read_text() + "\n" + line)

    return add


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_twice(1, USERS[1]), r"ml-100k\.user, line 5, must name another than '2', which is listed above"),
        (_twice(2, FILMS[0]), r"ml-100k\.item, line 6, must name another than '7'"),
        (_other_head, r"ml-100k\.user must have the columns user_id:token, .* got user_id:token, age\."),
        (_no_text, r"ml-100k\.item must be readable text"),
        (lambda files: files[0].write_text(""), r"ml-100k\.inter must have the columns .* got none"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: Callable[[list[Path]], Any], says: str) -> None:
    files = write_tables(tmp_path)
    damage(files)
    with pytest.raises(InvalidInputError, match=says):
        read_movielens(files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": 150}, r"at most 200, the ratings there are, got 150 \+ 30 \+ 40 = 220"),
        ({"n_test": 1}, "`n_test` must be enough for a rating below 4 and one of 5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        MovieLens(**{**SMALL, **options}).data("train")


def test_files_that_are_cut_off_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_tables(tmp_path)
    monkeypatch.setattr("mtl_benchmarks.benchmarks.movielens_files.packaged_files", lambda *_, **__: written)
    with pytest.raises(InvalidInputError, match=r"ml-100k\.inter must have 100,000 lines below its head, got 199"):
        movielens_files()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps recbole=="):
        movielens_files()


# --- losses and metrics ----------------------------------------------------------------------------------------------


def test_losses_and_metrics_by_hand() -> None:
    lens = MovieLens(**SMALL)
    model = lens.build()
    data = lens.data("test")
    outputs = {task: value.detach().double() for task, value in model(data.fields).items()}
    losses = lens.problem(model, tasks=lens.tasks).losses(data).values.detach().double()
    squared = (outputs["rating"] + 3 - data.stars).square().mean()
    assert float(losses[0]) == pytest.approx(float(squared), rel=1e-5)
    for k, task, least in ((1, "like", 4), (2, "love", 5)):
        chance, label = outputs[task].sigmoid(), (data.stars >= least).double()
        expected = -(label * chance + (1 - label) * (1 - chance)).log().mean()
        assert float(losses[k]) == pytest.approx(float(expected), rel=1e-5)
    found = lens.evaluate(model, device="cpu")
    assert found["test"]["rmse_rating"] == pytest.approx(float(squared.sqrt()), rel=1e-5)
    loved, others = outputs["love"][data.stars == 5], outputs["love"][data.stars < 5]
    wins = (loved[:, None] > others).double() + 0.5 * (loved[:, None] == others).double()
    assert found["test"]["auc_love"] == pytest.approx(100 * float(wins.mean()))
    added = lens.metrics_from(combined([lens.tally(model, device="cpu", part=Part(k, 3)) for k in range(3)]))
    for split, row in found.items():
        assert added[split] == pytest.approx(row, rel=1e-6)


def test_a_batch_touches_only_the_rows_of_its_users_and_films() -> None:
    lens = MovieLens(**SMALL)
    model = lens.build()
    assert isinstance(model, SharedTower)
    problem = lens.problem(model, tasks=lens.tasks)
    batch = lens.data("train").rows(torch.arange(2))
    losses = problem.losses(batch)
    found = collect(dict(zip(losses.tasks, losses.outputs, strict=True)), problem.shared, features=losses.features)
    found.assign(found.mean)
    table = model.trunk.get_parameter("0.tables.film.weight")
    assert table.grad is not None
    touched = set(table.grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert touched == set(batch.fields[:, FIELDS.index("film")].tolist())


def test_a_run_with_cost(tmp_path: Path) -> None:
    config = RunConfig.resolve(
        Choice("movielens", SMALL), "ls", Choice("cost", {"trigger": "weak"}), epochs=2, batch_size=30
    )
    assert set(run(config, tmp_path / "run").values) == {"rmse_rating", "auc_like", "auc_love"}


# --- the real ratings ------------------------------------------------------------------------------------------------


@pytest.mark.extras
@pytest.mark.skipif(not IS_INSTALLED, reason="the package recbole is not installed")
def test_the_real_ratings() -> None:
    ratings, sizes = read_movielens(movielens_files())
    assert len(ratings) == 100_000
    assert (sizes["user"], sizes["film"], sizes["gender"], sizes["occupation"]) == (943, 1682, 2, 21)
    assert torch.bincount(ratings.stars.long()).tolist() == [0, 6110, 11370, 27145, 34174, 21201]


@pytest.mark.extras
@pytest.mark.skipif(not IS_INSTALLED, reason="the package recbole is not installed")
def test_a_run_on_real_ratings_learns(tmp_path: Path) -> None:
    values = run(RunConfig.resolve("movielens", epochs=1), tmp_path / "run").values
    assert values["rmse_rating"] < 1.0  # 1.13 by the mean alone
    assert values["auc_love"] > 70
