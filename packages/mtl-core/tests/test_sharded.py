"""Sharded models at the doors that are not for them; on one rank, where nothing has to be waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from mtl_core import InvalidInputError, Problem
from mtl_core.extension import evaluate_without_graph, placed
from mtl_core.testing import leave, small_problem

Evaluation = Callable[[Problem, Tensor, dict[str, Tensor]], Any]


def evaluate_placed(problem: Problem, batch: Tensor, point: dict[str, Tensor]) -> Tensor:
    with placed(problem.model, point):
        return problem.losses(batch).values


EVALUATIONS: dict[str, Evaluation] = {
    "losses": lambda problem, batch, point: problem.losses(batch, parameters=point).values,
    "without graph": lambda problem, batch, point: evaluate_without_graph(problem, batch, parameters=point).values,
    "placed": evaluate_placed,
}
SHARDED: dict[str, Callable[[Any], tuple[nn.Module, ...]]] = {
    "model": lambda model: (model,),
    "trunk": lambda model: (model.trunk,),
    "both": lambda model: (model.trunk, model),
}


def said(evaluate: Callable[[], Any]) -> str:
    try:
        return f"nothing, and gave {evaluate()}"
    except InvalidInputError as error:
        return str(error)


def look() -> dict[Any, str]:
    found: dict[Any, str] = {}
    mesh = init_device_mesh("cpu", (1,))
    for name, chosen in SHARDED.items():
        for warm in (False, True):
            for way, evaluate in EVALUATIONS.items():
                problem, batch = small_problem(2)
                point = {n: p.detach() + 1.0 for n, p in problem.named_shared.items()}
                for module in chosen(problem.model):
                    fully_shard(module, mesh=mesh)
                if warm:
                    # After a forward pass whole parameters lie in the model, and none of them looks sharded.
                    problem.losses(batch)
                found[name, warm, way] = said(lambda: evaluate(problem, batch, point))  # noqa: B023
    # What is replaced lies in no sharded module: it is used.
    problem, batch = small_problem(2)
    point = {n: p.detach() + 1.0 for n, p in problem.named_shared.items()}
    expected = problem.losses(batch, parameters=point).values
    fully_shard(problem.model.get_submodule("heads.0"), mesh=mesh)
    difference = (problem.losses(batch, parameters=point).values - expected).abs().max()
    found["elsewhere"] = "equal" if difference == 0.0 else f"off by {difference}"
    for depth in ("whole", "part"):
        problem, batch = small_problem(2)
        model: Any = problem.model
        if depth == "whole":
            model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
        else:
            model.trunk = FullyShardedDataParallel(model.trunk, device_id=torch.device("cpu"))
        found["fsdp1", depth] = said(
            lambda: Problem(model, lambda m, x: m(x)[1], shared=list(model.parameters())[:1], tasks=("a", "b"))  # noqa: B023
        )
    return found


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=1)
    torch.save(look(), f"{folder}/found.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, str]:
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(_worker, args=(str(folder),), nprocs=1, join=True)
    loaded: dict[Any, str] = torch.load(Path(folder) / "found.pt")
    return loaded


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("way", EVALUATIONS)
@pytest.mark.parametrize("name", SHARDED)
def test_parameters_that_cannot_be_replaced(found: dict[Any, str], name: str, way: str, warm: bool) -> None:
    """The module's hooks put its own parameters back: the losses were those at another point, without a word."""
    assert found[name, warm, way].startswith("parameters must be whole to be replaced, got trunk.0.weight")
    assert "Replicate the model" in found[name, warm, way]


def test_parameters_beside_sharded_ones(found: dict[Any, str]) -> None:
    assert found["elsewhere"] == "equal"


@pytest.mark.parametrize("depth", ["whole", "part"])
def test_the_older_sharding_is_refused(found: dict[Any, str], depth: str) -> None:
    assert "got FullyShardedDataParallel" in found["fsdp1", depth]
    assert "fully_shard instead, which is supported" in found["fsdp1", depth]
