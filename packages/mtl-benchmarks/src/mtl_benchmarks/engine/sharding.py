"""Models whose parameters are spread over the processes by ``fully_shard``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, optim

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.ranks import Ranks
from mtl_core import InvalidInputError
from mtl_core.extension import is_sharded

__all__ = ["load_whole_state", "reshard", "shard", "whole_state"]


def shard(benchmark: Benchmark, model: nn.Module, ranks: Ranks, device: str) -> None:
    """Spread the parameters of a model over the processes, as its benchmark says.

    Raises:
        InvalidInputError: a parameter is left that no process has a shard of.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(torch.device(device).type, (ranks.size,))
    benchmark.shard(model, mesh)
    # Gradients of a parameter that is whole on every process are averaged by nobody: its copies would drift apart.
    left = [name for name, p in model.named_parameters() if not is_sharded([p])]
    if left:
        raise InvalidInputError(
            f"`shard` of benchmark {benchmark.name!r} must reach every parameter, got {', '.join(left[:4])} left. "
            "Override it, and call fully_shard on every module whose forward the losses call."
        )


def reshard(model: nn.Module) -> None:
    """Put the shards back where a forward pass without a backward pass left whole parameters in their places."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(
    model: nn.Module, optimizer: optim.Optimizer, *, sharded: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of model and optimiser; of sharded ones put together on the first process, empty on the others."""
    if not sharded:
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    found = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return dict(found[0]), dict(found[1])


def load_whole_state(
    model: nn.Module,
    optimizer: optim.Optimizer,
    model_state: Mapping[str, Any],
    optimizer_state: Mapping[str, Any],
    *,
    sharded: bool,
) -> None:
    """Take up what :func:`whole_state` gave; every process has it."""
    if not sharded:
        model.load_state_dict(model_state)
        optimizer.load_state_dict(dict(optimizer_state))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model,
        optimizer,
        model_state_dict=dict(model_state),
        optim_state_dict=dict(optimizer_state),
        options=StateDictOptions(full_state_dict=True),
    )
