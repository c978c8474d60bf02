"""Two gloo processes of which one lacks a task: both must move the same weights."""

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

import mtl_core
from mtl_aggregators import FAMO, MARIGOLD, UW, AuxiliaryWeights, Bilevel, MainTasks
from mtl_core.testing import leave

METHODS: dict[str, Callable[[], Any]] = {
    "UW": UW,
    "FAMO": FAMO,
    "MARIGOLD": lambda: MARIGOLD(lr=1e-2),
    "MARIGOLD exact adversary": lambda: MARIGOLD(lr=1e-2, estimate="symmetric", adversary="exact"),
    "MARIGOLD fused": lambda: MARIGOLD(lr=1e-2, lookahead="fused"),
    "MARIGOLD next": lambda: MARIGOLD(lr=1e-2, lookahead="fused", probe="next"),
    "auxiliary": lambda: Bilevel(upper=MainTasks("a"), weights=AuxiliaryWeights(["c"])),
}
PRESENT = (("abc", "ab"), ("ab", "bc"), ("ab", "ab"), ("c", "abc"), ("abc", "abc"))
"""The tasks of both ranks, step by step."""


def losses(model: nn.Module, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
    x, names = batch
    return {name: (model(x)[:, "abc".index(name)] - 1.0).square().mean() for name in names}


def train(group: dist.ProcessGroup, rank: int) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for name, make in METHODS.items():
        torch.manual_seed(0)
        model = nn.Linear(3, 3).double()
        problem = mtl_core.Problem(model, losses, shared=model, tasks=("a", "b", "c"))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        method = make()
        found[name] = []
        for k, names in enumerate(PRESENT):
            x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * k + rank))
            report = mtl_core.step(problem, (x, names[rank]), optimizer, method, group=group)
            assert report.weights is not None
            found[name] += [report.weights, report.losses]
        found[name] += [p.detach() for p in model.parameters()]
    return found


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    world = dist.group.WORLD
    assert world is not None
    torch.save(train(world, rank), f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(str(folder),), nprocs=2, join=True)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", METHODS)
def test_ranks_agree(ranks: list[dict[str, list[Tensor]]], method: str) -> None:
    for first, second in zip(ranks[0][method], ranks[1][method], strict=True):
        assert torch.equal(first.nan_to_num(nan=-1.0), second.nan_to_num(nan=-1.0))
    weights = torch.stack(ranks[0][method][: 2 * len(PRESENT) : 2])
    assert bool(torch.isfinite(weights).all())
    # No rank has the third task in the third step, and in every other one at least one has.
    assert (weights[:, 2] == 0.0).tolist() == [False, False, True, False, False]
