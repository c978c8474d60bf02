"""Two gloo processes: buffers where a wrapper makes the step, and a rank on which no task has a loss."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mtl_core import MicroBatches, NoLossesError, Problem, TaskSampling, UpdateEvery, step
from mtl_core.testing import leave

WORLD = 2


class ByNorm:
    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


class Total:
    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return losses.sum()


METHODS: dict[str, Callable[[], Any]] = {
    "sampling": lambda: TaskSampling(ByNorm(), n_tasks=2),
    "sampling of losses": lambda: TaskSampling(Total(), n_tasks=2),
    "held": lambda: UpdateEvery(ByNorm(), steps=2),
    "plain": ByNorm,
}
PARTS = ("whole", "parts")


def problem() -> Problem:
    torch.manual_seed(0)
    model: Any = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh())})
    for name in "abc":
        model[name] = nn.Linear(6, 1)

    def losses(model: Any, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
        z = model["trunk"](batch[0])
        return {name: (model[name](z) - k).square().mean() for k, name in enumerate("abc") if name in batch[1]}

    return Problem(model.double(), losses, shared="trunk", tasks=("a", "b", "c"))


def train(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).chunk(WORLD)[rank]
    for name, make in METHODS.items():
        for form in PARTS:
            own = problem()
            # Ranks that begin apart, as after a forward pass on data of their own.
            own.model.get_submodule("trunk.1").running_mean.fill_(float(rank))  # type: ignore[operator,union-attr]
            optimizer = torch.optim.SGD(own.model.parameters(), lr=0.1)
            method = make()

            def given(tasks: str, form: str = form) -> Any:
                return (x, tasks) if form == "whole" else MicroBatches([(part, tasks) for part in x.chunk(2)])

            for _ in range(3):
                step(own, given("abc"), optimizer, method, group=dist.group.WORLD)
            before = [p.detach().clone() for p in own.model.parameters()]
            said = "nothing"
            try:
                step(own, given("abc" if rank == 0 else ""), optimizer, method, group=dist.group.WORLD)
            except NoLossesError as error:
                said = str(error)
            moved = any(not torch.equal(p, q) for p, q in zip(own.model.parameters(), before, strict=True))
            # The ranks are together still.
            step(own, given("abc"), optimizer, method, group=dist.group.WORLD)
            found[name, form] = {
                "begun": _first_mean(rank, x, make, form),
                "parameters": [p.detach() for p in own.model.parameters()],
                "said": said,
                "moved": moved,
            }
    return found


def _first_mean(rank: int, x: Tensor, make: Callable[[], Any], form: str) -> Tensor:
    """The running mean after a step in which it stays what it was at the step's beginning."""
    own = problem()
    norm: Any = own.model.get_submodule("trunk.1")
    norm.momentum = 0.0
    norm.running_mean.fill_(float(rank + 1))
    batch: Any = (x, "abc") if form == "whole" else MicroBatches([(part, "abc") for part in x.chunk(2)])
    step(own, batch, torch.optim.SGD(own.model.parameters(), lr=0.1), make(), group=dist.group.WORLD)
    return norm.running_mean.clone()


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    torch.save(train(rank), f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(str(folder),), nprocs=WORLD, join=True)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("name", METHODS)
def test_buffers_are_those_of_the_first_rank(ranks: list[dict[str, Any]], name: str, form: str) -> None:
    for found in ranks:
        assert bool((found[name, form]["begun"] == 1.0).all())


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("name", METHODS)
def test_a_rank_without_a_task_is_said_on_all(ranks: list[dict[str, Any]], name: str, form: str) -> None:
    for found in ranks:
        assert found[name, form]["said"].startswith("on rank 1: ")
        assert "the loss of at least one of ('a', 'b', 'c'), got none" in found[name, form]["said"]
        assert not found[name, form]["moved"]
    for p, q in zip(ranks[0][name, form]["parameters"], ranks[1][name, form]["parameters"], strict=True):
        assert torch.equal(p, q)
