"""Data read sample by sample: the same batches however many processes read them, and wherever one begins."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_benchmarks.batching.batches import Part, Probes
from mtl_benchmarks.batching.loading import LoadedBatches, Loading, _keep_quiet, on_device
from mtl_benchmarks.batching.tally import Rows
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.runs.runner import run
from mtl_core import InvalidInputError, InvalidParameterError

HERE = Path(__file__).parent
LINES = Choice("sample_benchmarks:Lines", {"loaded": True})


@pytest.fixture(autouse=True)
def _samples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(HERE)
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before, "a worker has outlived its test"


def source(n: int = 22, *, draws: bool = True, augmented: bool = True, size: int = 5, seed: int = 3) -> LoadedBatches:
    from sample_benchmarks import Points, jitter

    return LoadedBatches(
        Points(n, draws=draws), batch_size=size, seed=seed, augment=jitter if augmented else None, device="cpu"
    )


def plain(batch: Any) -> list[Any]:
    return [tensor.tolist() for tensor in batch]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_with_any_number_of_workers_from_anywhere(workers: int) -> None:
    alone = source()
    expected = {(e, k): plain(alone.batch(e, k)) for e in range(3) for k in range(5)}
    assert len({json.dumps(batch) for batch in expected.values()}) == 15
    for begin in (0, 3, 7):
        loaded = source()
        loaded.open(workers=workers)
        for step in range(begin, 15):
            place = divmod(step, 5)
            assert plain(loaded.batch(*place)) == expected[place]
        loaded.close()


@settings(max_examples=20)
@given(st.integers(1, 23), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_parts_are_the_batch(n: int, size: int, count: int, epoch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        loaded = source(n, size=size)
    for k in range(len(loaded)):
        x, y = loaded.batch(epoch, k)
        shares = [loaded.part(epoch, k, Part(p, count)) for p in range(count)]
        assert sum(share.weight for share in shares) == pytest.approx(count)
        kept = [share.batch for share in shares if share.weight]
        assert torch.equal(torch.cat([batch[0] for batch in kept]), x)
        assert torch.equal(torch.cat([batch[1] for batch in kept]), y)
        weighted = sum(share.weight * share.batch[0].mean(0) for share in shares) / count
        torch.testing.assert_close(weighted, x.mean(0))


def test_every_epoch_has_every_sample_once() -> None:
    loaded = source(draws=False, augmented=False)
    from sample_benchmarks import points

    for epoch in range(3):
        x = torch.cat([loaded.batch(epoch, k)[0] for k in range(len(loaded))])
        assert sorted(x.tolist()) == sorted(points(22, 0)[0].tolist())


def test_batches_out_of_order_do_not_disturb_those_in_order() -> None:
    alone = source()
    loaded = source()
    loaded.open(workers=1)
    probes = [plain(batch) for batch in Probes(alone)]
    for step in range(12):
        place = divmod(step, 5)
        assert plain(loaded.batch(*place)) == plain(alone.batch(*place))
        if step in (2, 6):
            assert [plain(batch) for batch in Probes(loaded)] == probes
    loaded.close()


def test_micro_batches_come_from_the_workers_in_their_order() -> None:
    parts = [Part(k, 2) for k in range(2)]
    alone, loaded = source(), source()
    loaded.open(workers=1, parts=parts)
    for step in range(7):
        for part in parts:
            ours, expected = (each.part(*divmod(step, 5), part) for each in (loaded, alone))
            assert (plain(ours.batch), ours.weight) == (plain(expected.batch), expected.weight)
    loaded.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_global_generators_alone(workers: int) -> None:
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)  # noqa: NPY002 - the legacy generator is what libraries draw from
    expected = (torch.rand(1).item(), random.random(), numpy.random.rand())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)  # noqa: NPY002
    loaded = source()
    loaded.open(workers=workers)
    for k in range(5):
        loaded.batch(0, k)
    loaded.close()
    assert (torch.rand(1).item(), random.random(), numpy.random.rand()) == expected  # noqa: NPY002


class Broken(Exception):
    """Stands for the end of the process."""


def content(path: Path) -> tuple[bytes, str]:
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    return (path / "metrics.csv").read_bytes(), repr(state["model"]) + repr(state["random"])


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 2), (1, 0), (2, 1)])
@pytest.mark.parametrize("broken_at", [2, 4])
def test_a_run_goes_on_in_the_middle_of_an_epoch_with_other_workers(
    tmp_path: Path, first: int, second: int, broken_at: int
) -> None:
    config = RunConfig.resolve(LINES, "fairgrad", Choice("cost", {"trigger": "weak", "max_steps": 1}), epochs=2)

    def stop(now: Progress) -> None:
        if now.done == broken_at:
            raise Broken

    run(config, tmp_path / "whole")
    with pytest.raises(Broken):
        run(config, tmp_path / "broken", checkpoint_every=1, progress=stop, loading=Loading(first))
    run(config, tmp_path / "broken", checkpoint_every=1, loading=Loading(second, prefetch=3))
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_time_spent_waiting_is_recorded(tmp_path: Path) -> None:
    slow = Choice(LINES.name, {**LINES.options, "seconds": 0.005})
    config = RunConfig.resolve(slow, "ls", epochs=2)

    def waiting(path: Path) -> float:
        rows = [line.split(",") for line in (path / "times.csv").read_text().splitlines()[1:]]
        return sum(float(row[3]) for row in rows if row[2] == "data")

    run(config, tmp_path / "none")
    assert waiting(tmp_path / "none") >= 2 * 22 * 0.005  # a bound by sleep, not by the machine


def test_an_error_in_a_worker_is_raised_here_and_ends_them() -> None:
    class Faulty(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, k: int) -> Tensor:
            if k == 2:
                raise InvalidInputError("sample 2 must be readable, got a fault.")
            return torch.zeros(1)

    loaded = LoadedBatches(Faulty(), batch_size=1, seed=0)
    loaded.open(workers=1)
    loaded.batch(0, 0)
    with pytest.raises(InvalidInputError, match="sample 2 must be readable"):
        [loaded.batch(0, k) for k in range(1, 4)]
    loaded.close()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = f"""
import multiprocessing, sys, time
sys.path.insert(0, {str(HERE)!r})
from sample_benchmarks import Points
from mtl_benchmarks.batching.loading import LoadedBatches
loaded = LoadedBatches(Points(40, draws=False), batch_size=2, seed=0)
loaded.open(workers=2)
loaded.batch(0, 0)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        workers = [int(word) for word in child.stdout.readline().split()]
        assert len(workers) == 2
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        deadline = time.monotonic() + 300
        while any(_runs(pid) for pid in workers):
            assert time.monotonic() < deadline, "workers have outlived the run"
            time.sleep(0.1)
    finally:
        child.kill()
        child.wait()


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


@pytest.mark.parametrize("batch", [torch.ones(2), {"a": torch.ones(2)}, (torch.ones(1), [torch.ones(1), "x", 3, None])])
def test_any_nesting_goes_to_the_device(batch: Any) -> None:
    moved = on_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    flat = torch.utils._pytree.tree_leaves(moved)
    assert all(leaf.device.type == "meta" for leaf in flat if isinstance(leaf, Tensor))
    assert [leaf for leaf in flat if not isinstance(leaf, Tensor)] == [
        leaf for leaf in torch.utils._pytree.tree_leaves(batch) if not isinstance(leaf, Tensor)
    ]


def test_refuses() -> None:
    with pytest.raises(InvalidParameterError, match="`dataset` must have a length"):
        LoadedBatches(iter([1]), batch_size=1, seed=0)
    with pytest.raises(InvalidParameterError, match="length of dataset"):
        LoadedBatches([], batch_size=1, seed=0)
    with pytest.raises(InvalidParameterError, match="`workers` must"):
        Loading(-1)
    with pytest.raises(InvalidParameterError, match="`prefetch` must"):
        Loading(1, prefetch=0)
    with pytest.raises(InvalidInputError, match="got object"):
        on_device(object(), torch.device("cpu"))
    assert isinstance(on_device(Rows(torch.ones(1)), torch.device("cpu")), Rows)


def test_a_worker_says_nothing_of_a_run_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr("sys.excepthook", lambda kind, *_: said.append(kind))
    _keep_quiet(0)
    for kind in (BrokenPipeError, ConnectionResetError, ConnectionRefusedError, OSError, ValueError):
        sys.excepthook(kind, kind(), None)
    assert said == [ConnectionRefusedError, OSError, ValueError]
