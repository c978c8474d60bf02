"""Means over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

__all__ = ["mean_over_ranks_"]


def mean_over_ranks_(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each tensor by its mean over the ranks of ``group``, in place and identically on every rank.

    Args:
        tensors: the same number of tensors, of the same shapes, on every rank.
        group: the process group, e.g. ``torch.distributed.group.WORLD``.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
    for work in works:
        if work is not None:
            work.wait()
    for tensor in tensors:
        tensor.div_(size)
