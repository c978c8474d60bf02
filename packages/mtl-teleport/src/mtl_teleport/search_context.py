"""What a search for a new point has to go by: probe batches, their losses, and how to look at the problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import InvalidInputError, Problem, StepOptions
from mtl_teleport import ranks
from mtl_teleport.acceptance import probe_losses
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.isolation import Mode
from mtl_teleport.search import task_gramian

__all__ = ["Search", "first", "open_search"]


@dataclass(frozen=True)
class Search:
    """What a search for a new point may use.

    Attributes:
        problem: the problem.
        batches: the probe batches.
        losses: their losses before, each ``[m]``, NaN where a task is absent.
        gramian: the Gramian ``[m, m]`` of the step's gradients, float64 on the CPU.
        lr: the learning rate of the shared parameters.
        generator: source of randomness, on the CPU; the same on every rank of ``group``.
        start: the Gramian that ``look`` gives before anything has moved, if it is known.
        look: the Gramian of the step's own batch, in the mode in which the step evaluates it, at the present point of
            an adapter.
        around: what each evaluation of the losses is to run in.
        group: a process group over which losses and gradients are means.
        loss_scale: factor on losses while they are differentiated.
        holds_all_gradients: whether there is room for the gradients of all tasks at once.
    """

    problem: Problem
    batches: tuple[Any, ...]
    losses: tuple[Tensor, ...]
    gramian: Tensor
    lr: float | None
    generator: torch.Generator
    start: Tensor | None
    look: Callable[[AdapterSession], Tensor]
    around: Callable[[], AbstractContextManager[None]]
    group: dist.ProcessGroup | None
    loss_scale: float
    holds_all_gradients: bool

    def prepare(self, session: AdapterSession) -> None:
        """Make a session that was just attached one of all ranks, with the values of the first."""
        session.group, session.loss_scale = self.group, self.loss_scale
        session.around, session.holds_all_gradients = self.around, self.holds_all_gradients
        if self.group is not None:
            ranks.same_tensors_(session.trainable, self.group)


def open_search(
    problem: Problem,
    batches: tuple[Any, ...],
    own_parts: tuple[Any, ...],
    gramian: Tensor,
    *,
    lr: float | None,
    options: StepOptions,
    generator: torch.Generator,
    step_mode: Callable[[], AbstractContextManager[None]],
    mode: Mode,
) -> Search:
    """What a search may use; the same on all ranks.

    Args:
        problem: the problem, its model in the mode of the search.
        batches: the probe batches.
        own_parts: the step's own batch, in parts.
        gramian: the Gramian of the step's gradients.
        lr: the learning rate of the shared parameters.
        options: the step's.
        generator: source of the search's own.
        step_mode: flags, buffers and random state as the step has them.
        mode: in which mode the search evaluates the problem.
    """
    group, scaler = options.group, options.scaler
    device = problem.shared[0].device
    seed = int(torch.randint(2**62, (), generator=generator))
    if group is not None:
        batches = batches[: ranks.fewest(len(batches), group, device)]
        seed = ranks.same_seed(seed, group, device)
    around = step_mode if mode == "train" else nullcontext

    def look(session: AdapterSession) -> Tensor:
        with step_mode():
            return task_gramian(session, *own_parts)

    return Search(
        problem,
        batches,
        probe_losses(problem, batches, group=group, around=around),
        gramian,
        lr,
        torch.Generator().manual_seed(seed),
        # The Gramian by the features is another one than that of the gradients, and cannot be compared.
        start=None if options.keep == "features" else gramian,
        look=look,
        around=around,
        group=group,
        loss_scale=scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0,
        holds_all_gradients=options.keep == "jacobian",
    )


def first(batches: Iterable[Any], count: int) -> tuple[Any, ...]:
    """The first of the probe batches.

    Raises:
        InvalidInputError: there is none.
    """
    found = tuple(islice(batches, count))
    if not found:
        raise InvalidInputError(
            "`probe_batches` must yield at least one batch whenever it is iterated, got none. Give a list or a loader, "
            "not a generator."
        )
    return found
