"""Small tensors of many steps in few: the same numbers, and the same files of a run, however long an interval is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_benchmarks import Choice, RunConfig, run
from mtl_benchmarks.engine import stacked
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.recorder import Recorder
from mtl_benchmarks.engine.stacked import STEPS, Stacked
from mtl_benchmarks.protocol.schedules import Span
from mtl_core import StepReport

sys.path.insert(0, str(Path(__file__).parent))

LENGTHS = [1, 2, 255, 256, 257, 520]
FILES = ("metrics.csv", "steps.csv", "cosines.csv", "events.jsonl")


@pytest.mark.parametrize("n", [0, *LENGTHS])
def test_all_of_them_in_their_order(n: int) -> None:
    values = torch.rand(n, 2, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    kept = Stacked()
    for value in values:
        kept.append(value.clone())
    whole = kept.whole()
    assert len(kept) == n
    assert kept.n_tensors == n // STEPS + n % STEPS
    if n == 0:
        assert whole is kept.last is None
        return
    assert whole is not None
    assert kept.last is not None
    assert torch.equal(whole, values)
    assert torch.equal(kept.last, values[-1])
    kept.clear()
    assert len(kept) == kept.n_tensors == 0


@pytest.mark.parametrize("cut", [0, 1, 255, 256, 300])
def test_going_on_from_what_was_saved(cut: int) -> None:
    values = torch.rand(600, 2)
    before, after = Stacked(), Stacked()
    for value in values[:cut]:
        before.append(value.clone())
    after.load(before.whole())
    assert len(after) == cut
    for value in values[cut:]:
        after.append(value.clone())
    whole = after.whole()
    assert whole is not None
    assert torch.equal(whole, values)


@pytest.mark.gpu
def test_a_saved_part_on_the_host_joins_those_on_the_device_without_waiting() -> None:
    values = torch.rand(600, 2)
    kept = Stacked()
    kept.load(values[:100])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in values[100:].cuda():
            kept.append(value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    whole = kept.whole()
    assert whole is not None
    assert whole.is_cuda
    assert torch.equal(whole.cpu(), values)


class Broken(Exception):
    """Stands for the end of the process."""


def files_of(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


def lines(method: str, length: int) -> RunConfig:
    """Two intervals of this length and one that is cut off."""
    config = RunConfig.resolve(Choice("sample_benchmarks:Lines"), method, steps=2 * length + length // 2)
    settings = config.as_dict()
    settings["training"]["evaluate_every"] = Span(length, "steps").as_dict()
    return RunConfig.from_dict(settings)


@pytest.mark.parametrize("method", ["ls", "fairgrad"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33])
def test_the_files_of_a_run_are_those_of_single_tensors(
    length: int, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that was broken off in the middle of its second interval, and once more at its end."""
    config = lines(method, length)
    monkeypatch.setattr(stacked, "STEPS", 10**9)
    expected = files_of(run(config, tmp_path / "singles").directory)
    monkeypatch.setattr(stacked, "STEPS", 16)
    assert files_of(run(config, tmp_path / "stacked").directory) == expected
    places = {length + (length + 1) // 2, 2 * length}

    def break_off(now: Progress) -> None:
        if now.done in places:
            places.remove(now.done)
            raise Broken

    every = max(1, length // 4)
    for _ in range(len(places)):
        with pytest.raises(Broken):
            run(config, tmp_path / "broken", checkpoint_every=every, progress=break_off)
    assert files_of(run(config, tmp_path / "broken", checkpoint_every=every).directory) == expected


def reports(n: int) -> list[StepReport]:
    """Some have no weights, some no Gramian, and one task is absent now and then."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for k in range(n):
        rows = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        losses: Tensor = torch.rand(2, generator=generator)
        if k % 7 == 0:
            losses[1] = torch.nan
        weights = None if k % 3 == 0 else torch.rand(2, generator=generator)
        found.append(StepReport(losses, weights, None if k % 5 == 0 else rows @ rows.T, ("a", "b")))
    return found


@pytest.mark.parametrize("cut", [None, 10, 256, 300])
def test_single_steps_keep_what_each_of_them_had(cut: int | None) -> None:
    recorder = Recorder(("a", "b"))
    steps = reports(520)
    for k, report in enumerate(steps):
        if k == cut:
            state: dict[str, Any] = recorder.state_dict()
            recorder = Recorder(("a", "b"))
            recorder.load_state_dict(state)
        recorder.record_step(report, None, epoch=0, step=k)
    assert recorder.last_losses == steps[-1].losses.tolist()
    recorder.end_interval({"test": {}}, epoch=1, step=520, rates={})
    rows = list(recorder.series.step_rows())
    assert len(rows) == 2 * 520
    for k, report in enumerate(steps):
        for j, task in enumerate(("a", "b")):
            step, name, loss, weight, norm = rows[2 * k + j]
            assert (step, name) == (k, task)
            assert loss == ("" if report.losses[j].isnan() else float(report.losses[j]))
            assert weight == ("" if report.weights is None else float(report.weights[j]))
            assert norm == ("" if report.gramian is None else float(report.gramian[j, j].sqrt().float()))
    # Where some steps lack them, there is no mean over the interval.
    assert set(recorder.training[0]) == {"loss_a", "loss_b"}


def test_a_long_interval_is_kept_in_few_tensors() -> None:
    """As many small ones as an interval has steps are what a process grew by 1 GiB for."""
    recorder = Recorder(("a", "b"))
    for k in range(2000):
        recorder.record_step(
            StepReport(torch.ones(2), torch.ones(2), torch.eye(2).double(), ("a", "b")), None, epoch=0, step=k
        )
    piles = [recorder._losses, recorder._gramians, recorder.series._weights, *recorder.series._parts]
    assert [len(pile) for pile in piles] == [2000] * 6
    assert sum(pile.n_tensors for pile in piles) <= 6 * (2000 // STEPS + STEPS)
