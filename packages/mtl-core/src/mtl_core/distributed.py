"""Sums and means over the ranks of a process group."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_core.errors import InvalidInputError

__all__ = [
    "broadcast_buffers_",
    "is_sharded",
    "local_part",
    "mean_over_tasks_present_",
    "reshard",
    "shard_group",
    "sum_over_ranks_",
]


def sum_over_ranks_(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each tensor by its sum over the ranks of ``group``, in place and identically on every rank.

    Args:
        tensors: the same number of tensors, of the same shapes, on every rank.
        group: the process group, e.g. ``torch.distributed.group.WORLD``.
    """
    # All are under way before one is waited for: their latencies overlap.
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
    for work in works:
        if work is not None:
            work.wait()


def mean_over_tasks_present_(losses: Tensor, index: Sequence[int], group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Mean losses over the ranks that have each task, and how many have it.

    Args:
        losses: ``[m]`` of this rank.
        index: positions of the tasks that this rank has.
        group: the process group.

    Returns:
        mean losses ``[m]``, NaN where no rank has the task, and counts ``[m]``.
    """
    counts = torch.zeros_like(losses)
    counts[list(index)] = 1.0
    # Zero in place of the NaN of an absent task, which would spoil the sum; sums and counts in one reduction.
    packed = torch.stack([torch.where(counts > 0, losses, torch.zeros_like(losses)), counts])
    sum_over_ranks_([packed], group)
    return packed[0] / packed[1], packed[1]


def broadcast_buffers_(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Give every rank the buffers of the group's first rank, such as the running statistics of batch normalisation.

    Args:
        model: the module whose buffers are to agree.
        group: the process group.
    """
    source = dist.get_global_rank(group, 0)
    works = [dist.broadcast(buffer, src=source, group=group, async_op=True) for buffer in model.buffers()]
    for work in works:
        if work is not None:
            work.wait()


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether some parameter is a shard of a model under ``torch.distributed.fsdp.fully_shard``.

    Where nothing has imported the sharding, nothing is sharded: importing it here would cost a second.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(p, module.DTensor) for p in parameters)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    sharded: Any = tensor
    local: Tensor = sharded.to_local() if is_sharded([tensor]) else tensor
    return local


def reshard(model: nn.Module) -> None:
    """Put the shards back where a forward pass left whole parameters in their places."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_group(parameters: Sequence[Tensor]) -> dist.ProcessGroup:
    """The ranks over which sharded parameters are spread.

    Raises:
        InvalidInputError: they are spread over more than one dimension of a mesh.
    """
    first: Any = parameters[0]
    if first.device_mesh.ndim != 1:
        raise InvalidInputError(
            f"a sharded model must lie on a mesh of one dimension, got {first.device_mesh}. Hybrid sharding is not "
            "supported."
        )
    group: dist.ProcessGroup = first.device_mesh.get_group()
    return group
