"""Two gloo processes on one machine against one process on the whole batch."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mtl_core import collect
from mtl_core.testing import small_problem

WORLD = 2


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    problem, _ = small_problem(3, features=True)
    whole = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = problem.losses(whole.chunk(WORLD)[rank])
    grads = collect(
        losses.outputs, problem.shared, features=losses.features, heads=problem.heads, group=dist.group.WORLD
    )
    heads = [p.grad for p in problem.heads]
    torch.save({"matrix": grads.matrix, "losses": grads.losses, "heads": heads}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process_on_the_whole_batch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(folder,), nprocs=WORLD, join=True)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]
    problem, _ = small_problem(3, features=True)
    whole = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = problem.losses(whole)
    expected = collect(losses.outputs, problem.shared, heads=problem.heads)
    assert torch.equal(found[0]["matrix"], found[1]["matrix"])
    torch.testing.assert_close(found[0]["matrix"], expected.matrix, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0]["losses"], expected.losses, rtol=1e-10, atol=1e-12)
    for gradient, head in zip(found[0]["heads"], problem.heads, strict=True):
        torch.testing.assert_close(gradient, head.grad, rtol=1e-10, atol=1e-12)
