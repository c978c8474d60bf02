"""Two gloo processes on halves of a batch against one process on the whole."""

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

import mtl_core
from mtl_aggregators import DWA, FAMO, IMTL, IMTLL, MARIGOLD, RLW, UW, log_transform
from mtl_core.testing import leave, small_problem

WORLD = 2

METHODS: dict[str, Callable[[], Any]] = {
    "RLW": RLW,
    "DWA": lambda: DWA(variant="window", window=1),
    "UW": UW,
    "IMTLL": IMTLL,
    "IMTL": IMTL,
    "FAMO": FAMO,
    "log FAMO": lambda: log_transform(FAMO(bound=-100.0)),
    "MARIGOLD": lambda: MARIGOLD(lr=1e-2),
    "MARIGOLD symmetric": lambda: MARIGOLD(lr=1e-2, estimate="symmetric"),
    "MARIGOLD fused": lambda: MARIGOLD(lr=1e-2, lookahead="fused"),
    "MARIGOLD next": lambda: MARIGOLD(lr=1e-2, lookahead="fused", probe="next"),
}


def train(group: dist.ProcessGroup | None, rank: int, world: int) -> dict[str, list[torch.Tensor]]:
    found: dict[str, list[torch.Tensor]] = {}
    whole = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, make in METHODS.items():
        problem, _ = small_problem(3)
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
        method = make()
        for k in range(4):
            batch = whole.roll(k, 0).chunk(world)[rank]
            report = mtl_core.step(problem, batch, optimizer, method, group=group, max_norm=0.5)
        assert report.weights is not None
        found[name] = [report.weights, *(p.detach() for p in problem.model.parameters())]
    return found


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    torch.save(train(dist.group.WORLD, rank, WORLD), f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(str(folder),), nprocs=WORLD, join=True)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[torch.Tensor]]:
    return train(None, 0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_steps_equal_those_of_one_process(
    ranks: list[dict[str, list[torch.Tensor]]], alone: dict[str, list[torch.Tensor]], method: str
) -> None:
    for first, second in zip(ranks[0][method], ranks[1][method], strict=True):
        assert torch.equal(first, second)
    for found, expected in zip(ranks[0][method], alone[method], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
