"""Two processes, something wrong on one of them: both end with the same error, at once, and nothing has moved.

A rank that raised by itself would leave the other one waiting in a collective operation until the process group's
timeout. So every method is given each kind of trouble on the second rank, and what both ranks said is compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mtl_aggregators import CRMOGM, ThreeBatches, available, log_transform, make
from mtl_core import MicroBatches, TaskSampling, UpdateEvery, step
from mtl_core.extension import CountsEpochs, offers
from mtl_core.testing import faulty_problem, leave
from mtl_teleport import COST, Trigger

WORLD = 2
LIMIT = 5.0  # seconds that a step with trouble may take, and twenty times what a good one took just before


class Always(Trigger):
    """A teleport in every step."""

    def __call__(self, gramian: Tensor) -> bool:
        return True


def cost(name: str) -> COST:
    return COST(make(name), trigger=Always(), max_per_epoch=None, max_steps=2, max_drift=None)


METHODS: dict[str, Callable[[], Any]] = {
    **{name: partial(make, name) for name in available()},
    "every nashmtl": lambda: UpdateEvery(make("nashmtl"), steps=2),
    "sampling ls": lambda: TaskSampling(make("ls"), n_tasks=2),
    "sampling pcgrad": lambda: TaskSampling(make("pcgrad"), n_tasks=2),
    "log graddrop": lambda: log_transform(make("graddrop")),
    "log famo": lambda: log_transform(make("famo", bound=-50.0)),
    "crmogm imtl": lambda: CRMOGM(make("imtl")),
    "fused marigold": lambda: make("marigold", lookahead="fused"),
    "cost ls": lambda: cost("ls"),
    "cost fairgrad": lambda: cost("fairgrad"),
    "cost famo": lambda: cost("famo"),
}
TROUBLE = ("losses", "backward", "nan loss", "nan gradient", "nan head", "missing", "parts")


def run(name: str, trouble: str, rank: int, group: Any) -> dict[str, Any]:
    """Two good steps and one with trouble, on one rank."""
    problem, net, rows = faulty_problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    method = METHODS[name]()
    if offers(method, CountsEpochs):
        method.start_epoch(0)
    torch.manual_seed(rank)
    mine = rows.chunk(WORLD)[rank]
    batch: Any = ThreeBatches(*mine.chunk(3)) if name in ("sdmgrad", "modo") else mine
    for _ in range(2):
        began = time.perf_counter()
        step(problem, batch, optimizer, method, group=group)
    good = time.perf_counter() - began
    before = [p.detach().clone() for p in net.parameters()]
    net.evaluations = 0
    if rank == 1:
        net.fault = "losses" if trouble == "parts" else trouble  # type: ignore[assignment]
        # Numbers are looked at again to say whose they are; errors come once.
        net.at = None if trouble.startswith("nan") else 1
        if trouble == "missing":
            names = ("task0", "task2")
            batch = (
                ThreeBatches(*((part, names) for part in batch)) if isinstance(batch, ThreeBatches) else (batch, names)
            )
    if trouble == "parts":
        batch = MicroBatches([batch] if isinstance(batch, ThreeBatches) else batch.chunk(2))
    began = time.perf_counter()
    said: tuple[str, str] | None = None
    try:
        step(problem, batch, optimizer, method, group=group)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared with the other rank's
        said = type(error).__name__, str(error)
    seconds = time.perf_counter() - began
    after = [p.detach().clone() for p in net.parameters()]
    moved = any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    return {"said": said, "seconds": seconds, "limit": LIMIT + 20 * good, "moved": moved, "parameters": after}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    # The processes may begin far apart on a busy machine; a step that waits is over sooner.
    group = dist.new_group(timeout=timedelta(seconds=60))
    found = {}
    for name in METHODS:
        for trouble in TROUBLE:
            found[name, trouble] = run(name, trouble, rank, group)
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD, join=True)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("trouble", TROUBLE)
def test_both_end_alike_and_at_once(ranks: list[Any], name: str, trouble: str) -> None:
    first, second = (found[name, trouble] for found in ranks)
    assert first["said"] == second["said"]
    assert all(found["seconds"] < found["limit"] for found in (first, second))
    for p, q in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(p, q)
    if trouble == "missing":
        return  # a method that can do without goes on, on the mean over the rank that has the task
    if first["said"] is None:
        assert name.startswith(("sampling", "cost")), f"{name} went on over {trouble}"
        return
    assert not first["moved"]
    if "three independent" not in first["said"][1] and "MicroBatches" not in first["said"][1]:
        assert "rank 1" in first["said"][1]
    if trouble.startswith("nan"):
        assert "task1" in first["said"][1]
