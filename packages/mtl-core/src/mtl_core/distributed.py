"""Sums and means over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["broadcast_buffers_", "mean_over_tasks_present_", "sum_over_ranks_"]


def sum_over_ranks_(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each tensor by its sum over the ranks of ``group``, in place and identically on every rank.

    Args:
        tensors: the same number of tensors, of the same shapes, on every rank.
        group: the process group, e.g. ``torch.distributed.group.WORLD``.
    """
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
