"""What a step is given, and what becomes of a step in which no task has a loss."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl_aggregators import SDMGrad, ThreeBatches
from mtl_benchmarks.batching.batches import Batches, Part, Repeated, Share
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.step_batches import StepBatches
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.runs.runner import run
from mtl_core import InvalidParameterError, MicroBatches
from mtl_teleport import COST

DIGITS = Choice("digits", {"n_train": 48, "n_test": 20, "n_validation": 20, "width": 2})
ALONE: Any = SimpleNamespace(rank=0, size=1)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


def rows(count: int = 20, batch_size: int = 8) -> Batches[list[int]]:
    return Batches(lambda found, generator: found.tolist(), count, batch_size=batch_size, seed=3)


@pytest.mark.parametrize("method", [SDMGrad(), COST(SDMGrad())], ids=["alone", "wrapped"])
def test_three_batches_are_disjoint_and_are_the_batch(method: Any) -> None:
    source = rows()
    batches = StepBatches(source, Training(epochs=1, batch_size=8), ALONE, method)
    for index in range(len(source)):
        three = batches.batch(0, index)
        assert isinstance(three, ThreeBatches)
        assert [row for part in three for row in part.batch] == source.batch(0, index)
        # Each is a batch of its own: its loss is the mean over its own samples.
        assert [part.weight for part in three] == [1.0] * 3
        assert all(part.batch for part in three)


def test_other_methods_get_the_batch() -> None:
    source = rows()
    plain = StepBatches(source, Training(epochs=1, batch_size=8), ALONE, object())
    assert plain.batch(0, 1) == source.batch(0, 1)
    parts = StepBatches(source, Training(epochs=1, batch_size=8, accumulate=2), ALONE, object()).batch(0, 0)
    assert isinstance(parts, MicroBatches)
    assert [row for part in parts for row in part.batch] == source.batch(0, 0)


def test_processes_share_each_third() -> None:
    source = rows(12, 12)
    found = [
        StepBatches(source, Training(epochs=1, batch_size=12), SimpleNamespace(rank=rank, size=2), SDMGrad())  # type: ignore[arg-type]
        for rank in range(2)
    ]
    seen = [row for each in found for part in each.batch(0, 0) for row in part.batch]
    assert sorted(seen) == sorted(source.batch(0, 0))
    assert {part.weight for each in found for part in each.batch(0, 0)} == {1.0}


@pytest.mark.parametrize("count", [3, 5, 7, 11])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_the_thirds_of_several_processes_are_those_of_one(count: int, n_ranks: int) -> None:
    source, training = rows(count, 12), Training(epochs=1, batch_size=12)
    one = StepBatches(source, training, ALONE, SDMGrad()).batch(0, 0)
    ranks: list[Any] = [SimpleNamespace(rank=rank, size=n_ranks) for rank in range(n_ranks)]
    shares = [StepBatches(source, training, each, SDMGrad()).batch(0, 0) for each in ranks]
    for third, parts in zip(one, zip(*shares, strict=True), strict=True):
        # The mean of a third, taken as processes take it: each its own mean times its weight, then the mean over them.
        mean = sum(part.weight * sum(part.batch) / len(part.batch) for part in parts) / n_ranks
        assert mean == pytest.approx(sum(third.batch) / len(third.batch), rel=1e-12)


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"batch_size": 8, "accumulate": 2}])
def test_what_cannot_be_cut_is_refused_by_name(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidParameterError, match=r"`batch_size` must be at least 3 .* SDMGrad takes three batches"):
        StepBatches(rows(), Training(epochs=1, **settings), ALONE, COST(SDMGrad()))


class Bare:
    """Batches that can be divided and do not know their sizes."""

    def __init__(self, count: int) -> None:
        self.rows = rows(count)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, epoch: int, index: int) -> list[int]:
        return self.rows.batch(epoch, index)

    def part(self, epoch: int, index: int, part: Part) -> Share[list[int]]:
        return self.rows.part(epoch, index, part)


@pytest.mark.parametrize("make", [rows, Bare])
@pytest.mark.parametrize(("count", "left"), [(1, 1), (2, 2), (9, 1), (18, 2)])
def test_a_batch_of_fewer_than_three_samples_is_refused_wherever_it_comes(make: Any, count: int, left: int) -> None:
    with pytest.raises(InvalidParameterError, match=rf"no batch of fewer than 3 .* batch of an epoch has {left}"):
        StepBatches(make(count), Training(epochs=1, batch_size=8), ALONE, SDMGrad())
    assert len(StepBatches(make(count), Training(epochs=1, batch_size=8), ALONE, object())) == -(-count // 8)


def test_several_processes_must_know_how_many_samples_a_batch_has() -> None:
    with pytest.raises(InvalidParameterError, match=r"`batches` must have size\(index\) where 2 processes train"):
        StepBatches(Bare(24), Training(epochs=1, batch_size=8), SimpleNamespace(rank=0, size=2), SDMGrad())  # type: ignore[arg-type]


def test_a_problem_without_data_is_whole_in_each() -> None:
    three = StepBatches(Repeated("all", 2), Training(epochs=1, batch_size=1), ALONE, SDMGrad()).batch(0, 0)
    assert three == ThreeBatches(*[Share("all", 1.0)] * 3)


@pytest.mark.parametrize("name", ["sdmgrad", "modo"])
@pytest.mark.parametrize("teleport", [None, Choice("cost", {"trigger": "weak", "max_steps": 2})], ids=["alone", "cost"])
def test_methods_of_three_batches_run_and_go_on_as_they_would_have(
    name: str, teleport: Choice | None, tmp_path: Path
) -> None:
    config = RunConfig.resolve(DIGITS, name, teleport, epochs=2)
    whole = run(config, tmp_path / "whole")

    def stop(now: Any) -> None:
        if now.done == 1:
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        run(config, tmp_path / "parts", checkpoint_every=1, progress=stop)
    assert run(config, tmp_path / "parts").values == whole.values


@pytest.mark.parametrize("name", ["ls", "upgrad", "famo", "sdmgrad", "uw"])
def test_a_batch_without_any_loss_is_passed_over_and_noted(name: str, tmp_path: Path) -> None:
    """Three lines whose first step finds no task: what follows is what follows from the start."""
    absent = run(RunConfig.resolve(Choice("many_lines:Absent", {"steps": [0]}), name, epochs=2), tmp_path / "absent")
    lines = (tmp_path / "absent" / "events.jsonl").read_text().splitlines()
    notes = [json.loads(line) for line in lines]
    assert [note["text"] for note in notes if "no task has a loss" in note.get("text", "")] == [
        "no task has a loss: no update is made"
    ]
    assert torch.tensor(list(absent.values.values())).isfinite().all()


def test_a_step_that_is_passed_over_moves_nothing(tmp_path: Path) -> None:
    all_absent = Choice("many_lines:Absent", {"steps": [0, 1, 2, 3]})
    ends = [run(RunConfig.resolve(all_absent, name, epochs=2), tmp_path / name).values for name in ("ls", "famo")]
    assert ends[0] == ends[1]
