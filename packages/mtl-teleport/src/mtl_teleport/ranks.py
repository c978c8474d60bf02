"""A search over several processes: losses and gradients that are the same numbers on every rank.

Each rank evaluates its own part of a batch. A mean over ranks keeps the graph of the rank's own share, so that the
gradient of any function of mean losses is the sum over ranks of what each differentiates by itself. All decisions are
then made from identical numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import TaskLosses
from mtl_core.extension import mean_over_tasks_present_, sum_over_ranks_, together
from mtl_teleport.triggers import Trigger, truth

__all__ = ["agree", "asked", "fewest", "mean_losses", "same_rate", "same_seed", "same_tensors_", "total"]


class _Total(torch.autograd.Function):
    """A value that was reduced over ranks, with the graph of this rank's own share in it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def _with_graph_of(own: Tensor, value: Tensor) -> Tensor:
    """``value``, differentiated as ``own`` is."""
    found: Tensor = _Total.apply(own, value)  # type: ignore[no-untyped-call]
    return found


def mean_losses(losses: TaskLosses, group: dist.ProcessGroup) -> TaskLosses:
    """Mean losses over the ranks that have each task; present is what some rank has.

    Args:
        losses: this rank's.
        group: the process group.
    """
    mean, counts = mean_over_tasks_present_(losses.full(float("nan")).detach(), losses.index, group)
    present = [i for i, count in enumerate(counts.tolist()) if count]
    own = dict(zip(losses.index, losses.values.unbind(), strict=True))
    # This rank's share of the mean, 1/n of its own loss, carries the graph; the value is the mean. Gradients of the
    # shares add up to that of the mean.
    outputs = tuple(_with_graph_of(own[i] / counts[i], mean[i]) if i in own else mean[i] for i in present)
    # By position: the name of a task that only other ranks have is not in this rank's losses.
    names = dict(zip(losses.index, losses.tasks, strict=True))
    tasks = tuple(names.get(i, str(i)) for i in present)
    return TaskLosses(outputs, tasks, tuple(present), losses.n_tasks, losses.features)


def total(gradients: tuple[Tensor, ...], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Sums of gradients over the ranks; where an own share has a graph, so has the sum."""
    # Clones: the sum is made in place, and autograd may have handed out one tensor twice.
    sums = [gradient.detach().clone() for gradient in gradients]
    sum_over_ranks_(sums, group)
    return tuple(
        _with_graph_of(own, value) if own.requires_grad else value for own, value in zip(gradients, sums, strict=True)
    )


def asked(trigger: Trigger, gramian: Tensor, group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """What a trigger says, on every rank what it says on the first.

    A trigger may draw random numbers, count or look at a clock, and a rank that searched alone would wait for the
    others.

    Args:
        trigger: the condition; what it raises on one rank is raised on all.
        gramian: ``[m, m]``.
        group: the ranks, if there are several.
        device: of the parameters.
    """
    with together(group):
        # A copy: what a condition writes into it is not the step's.
        answer = truth(trigger(gramian.clone()), trigger.name)
    return answer if group is None else bool(_of_the_first(int(answer), group, device))


def same_rate(rate: float | None, group: dist.ProcessGroup, device: torch.device) -> float | None:
    """The learning rate of the group's first rank: searches of another step length would part, and wait."""
    found = float(_of_the_first(math.nan if rate is None else rate, group, device))
    return None if math.isnan(found) else found


def _of_the_first(number: float, group: dist.ProcessGroup, device: torch.device) -> float:
    # A whole number stays one: a seed has more digits than a double.
    found = torch.tensor(number, device=device, dtype=torch.int64 if isinstance(number, int) else torch.float64)
    dist.broadcast(found, src=dist.get_global_rank(group, 0), group=group)
    return found.item()


def agree(holds: bool, group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether something holds on every rank."""
    failures = torch.tensor(0.0 if holds else 1.0, device=device)
    sum_over_ranks_([failures], group)
    return not bool(failures)


def fewest(count: int, group: dist.ProcessGroup, device: torch.device) -> int:
    """The smallest of the ranks' counts."""
    found = torch.tensor(count, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN, group=group)
    return int(found)


def same_seed(seed: int, group: dist.ProcessGroup, device: torch.device) -> int:
    """The seed of the group's first rank."""
    return int(_of_the_first(seed, group, device))


def same_tensors_(tensors: tuple[Tensor, ...], group: dist.ProcessGroup) -> None:
    """Give every rank the values of the group's first rank."""
    for tensor in tensors:
        # detach() shares the memory, so that the leaf itself gets the values.
        dist.broadcast(tensor.detach(), src=dist.get_global_rank(group, 0), group=group)
