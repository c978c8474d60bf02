"""What a search for a new point has to go by: probe batches, their losses, and how the step itself sees the problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mtl_core import InvalidInputError, Problem, StepOptions, checks
from mtl_core.extension import gramian_of, widest_dtype
from mtl_teleport import ranks
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.conditions import Conditions
from mtl_teleport.evaluation import probe_losses
from mtl_teleport.isolation import Mode
from mtl_teleport.next_step import NextStep

__all__ = ["Search", "StepView", "first", "open_search", "task_gramian"]


@dataclass(frozen=True)
class StepView:
    """How the step itself sees the problem.

    Attributes:
        parts: its batch, in parts where it accumulates.
        state: training flags, buffers and random state as the step finds them, for a while.
    """

    parts: tuple[Any, ...]
    state: Callable[[], AbstractContextManager[None]] = nullcontext

    def gramian(self, session: AdapterSession) -> Tensor:
        """The Gramian ``[m, m]`` that the step would see at the adapter's present point."""
        with self.state():
            return task_gramian(session, *self.parts)


@dataclass(frozen=True)
class Search:
    """What a search for a new point may use.

    Attributes:
        problem: the problem.
        batches: the probe batches.
        losses: their losses before, each ``[m]``, NaN where a task is absent.
        gramian: the Gramian ``[m, m]`` of the step's gradients, float64 on the CPU.
        generator: source of randomness, on the CPU; the same on every rank of a group.
        lr: the learning rate of the shared parameters, if it is known.
        view: how the step sees the problem; ``None`` for the first probe batch, as the search sees it.
        is_comparable: whether ``gramian`` is what ``view`` gives before anything has moved.
        conditions: under which the losses are evaluated and differentiated.
        next_step: gives the step to come as it would be made before anything moves, or ``None`` if it is not known.
        left: passes that the whole teleport may still take, its losses before included; infinity for any number.
    """

    problem: Problem
    batches: tuple[Any, ...]
    losses: tuple[Tensor, ...]
    gramian: Tensor
    generator: torch.Generator
    lr: float | None = None
    view: StepView | None = None
    is_comparable: bool = False
    conditions: Conditions = Conditions()
    next_step: Callable[[], NextStep | None] = lambda: None
    left: float = math.inf

    def prepare(self, session: AdapterSession, around: Callable[[], AbstractContextManager[None]]) -> None:
        """Make a session that was just attached one of all ranks, with the values of the first.

        Args:
            session: the session.
            around: what its evaluations run in, on top of or instead of ``conditions.around``.
        """
        session.conditions = replace(self.conditions, around=around)
        if self.conditions.group is not None:
            ranks.same_tensors_(session.trainable, self.conditions.group)


def open_search(
    problem: Problem,
    batches: tuple[Any, ...],
    gramian: Tensor,
    view: StepView,
    *,
    lr: float | None,
    options: StepOptions,
    generator: torch.Generator,
    mode: Mode,
    coming: Callable[[], NextStep | None] = lambda: None,
    left: float = math.inf,
) -> Search:
    """What a search may use; the same on all ranks.

    Args:
        problem: the problem, its model in the mode of the search.
        batches: the probe batches.
        gramian: the Gramian of the step's gradients.
        view: how the step sees the problem.
        lr: the learning rate of the shared parameters.
        options: the step's.
        generator: source of the search's own.
        mode: in which mode the search evaluates the problem.
        coming: gives the step to come, if it is known.
        left: passes that the teleport may take.
    """
    group, scaler = options.group, options.scaler
    device = problem.shared[0].device
    # One number per search, however many the search itself draws: the next search does not depend on how long this one
    # was.
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
    if group is not None:
        # Every evaluation is done by all ranks together; loaders of ranks may differ in length by one batch.
        batches = batches[: ranks.fewest(len(batches), group, device)]
        seed = ranks.same_seed(seed, group, device)
    conditions = Conditions(
        view.state if mode == "train" else nullcontext,
        group,
        loss_scale=scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0,
        holds_all_gradients=options.keep == "jacobian",
    )
    return Search(
        problem,
        batches,
        probe_losses(problem, batches, conditions=conditions),
        gramian,
        torch.Generator().manual_seed(seed),
        lr,
        view,
        # The Gramian by the features is another one than that of the gradients, and cannot be compared.
        is_comparable=options.keep != "features",
        conditions=conditions,
        next_step=coming,
        left=left,
    )


def task_gramian(session: AdapterSession, *batches: Any) -> Tensor:
    """The Gramian ``[m, m]`` of the gradients at the adapted point, averaged over batches that have the task.

    Args:
        session: the problem with its adapter.
        batches: one batch, or the parts of one.
    """
    n_tasks = session.problem.n_tasks
    jacobian: Tensor | None = None
    counts = [0] * n_tasks
    for batch in batches:
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        inputs = list(point.values())
        if jacobian is None:
            size, dtype = sum(t.numel() for t in inputs), widest_dtype(inputs)
            jacobian = torch.zeros(n_tasks, size, dtype=dtype, device=inputs[0].device)
        # Task by task into its row, so that no second copy of all gradients exists.
        for task, row in zip(losses.index, session.each_task_gradient(losses, inputs, at=point), strict=True):
            counts[task] += 1
            # Losses that differentiate leave gradients with a graph, which the sum must not take up.
            with torch.no_grad():
                for part, gradient in zip(jacobian[task].split([t.numel() for t in inputs]), row, strict=True):
                    part.add_(gradient.reshape(-1))
    assert jacobian is not None
    if len(batches) > 1:
        jacobian /= torch.tensor(counts, dtype=jacobian.dtype, device=jacobian.device).clamp(min=1.0)[:, None]
    gramian = gramian_of(jacobian).cpu()
    checks.refuse_lost(jacobian, gramian, name="gradients of the probes", whose=session.problem.tasks)
    return gramian


def first(batches: Iterable[Any], count: int | None) -> tuple[Any, ...]:
    """The first of the probe batches, or all of them.

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
