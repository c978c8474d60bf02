"""The small numbers beside task gradients, moved together: to the host in one copy, over the ranks in one reduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.collecting.backward import is_on_host
from mtl_core.distributed import sum_over_ranks_

__all__ = ["HostCopy", "RankSums", "copied_at_once", "summed_at_once"]


@dataclass(frozen=True)
class HostCopy:
    """What a step reads from the device.

    Attributes:
        gramian: ``[m, m]``, float64.
        losses: ``[m]``.
        counts: how many ranks have each task; ``None`` without ranks.
        head_flags: per task a number that is finite where its gradients of the heads are; empty if they were not asked.
        touched: whether some rank touches each parameter; empty if that was not asked.
    """

    gramian: Tensor
    losses: Tensor
    counts: list[float] | None
    head_flags: list[float]
    touched: list[bool]


def copied_at_once(
    gramian: Tensor, losses: Tensor, counts: Tensor | None, head_flags: Tensor | None, touched: Tensor | None
) -> HostCopy:
    """One copy to the host for all of them: each copy waits for everything that the device has still to do.

    Args:
        gramian: ``[m, m]``, float64.
        losses: ``[m]``.
        counts: ``[m]``, where there are ranks.
        head_flags: ``[m]``, where the heads' gradients are looked at.
        touched: over how many ranks each parameter is touched, where that is not known yet.
    """
    pieces = [gramian, *[each.to(gramian) for each in (losses, counts, head_flags, touched) if each is not None]]
    if is_on_host(gramian):
        # All is there. A copy all the same: what a method does to it is not done to the gradients' own.
        square, values, *others = gramian.clone(), *pieces[1:]
    else:
        sizes = [piece.numel() for piece in pieces]
        square, values, *others = torch.cat([piece.flatten() for piece in pieces]).cpu().split(sizes)
    found = iter([other.tolist() for other in others])
    return HostCopy(
        square.view(gramian.shape),
        values,
        None if counts is None else next(found),
        [] if head_flags is None else next(found),
        [] if touched is None else [count > 0 for count in next(found)],
    )


@dataclass(frozen=True)
class RankSums:
    """Sums over ranks, on the device.

    Attributes:
        losses: ``[m]``, of the ranks that have the task.
        counts: ``[m]``, how many these are.
        head_flags: ``[m]``, not finite where a rank's gradients of the heads are not.
        touched: per parameter how many ranks touch it.
    """

    losses: Tensor
    counts: Tensor
    head_flags: Tensor
    touched: Tensor


def summed_at_once(
    losses: Tensor, present: Sequence[int], head_flags: Tensor | None, touched: Sequence[bool], group: dist.ProcessGroup
) -> RankSums:
    """One reduction for all of them: a reduction of a few numbers takes as long as one of a few hundred.

    Args:
        losses: ``[m]``, NaN for an absent task.
        present: positions of the tasks that this rank has.
        head_flags: ``[m]``, where the heads' gradients are looked at.
        touched: whether this rank touches each parameter.
        group: the ranks.
    """
    m = len(losses)
    # Half precision cannot count ranks exactly and would round the losses once more.
    like = losses.to(torch.promote_types(losses.dtype, torch.float32))
    counts = torch.zeros_like(like)
    counts[list(present)] = 1.0
    packed = torch.cat(
        [
            # An absent task's loss is NaN and would spoil the sum of the ranks that have it.
            torch.where(counts > 0, like, torch.zeros_like(like)),
            counts,
            torch.zeros_like(like) if head_flags is None else head_flags.to(like),
            torch.tensor(touched, dtype=like.dtype, device=like.device),
        ]
    )
    sum_over_ranks_([packed], group)
    return RankSums(packed[:m], packed[m : 2 * m], packed[2 * m : 3 * m], packed[3 * m :])
