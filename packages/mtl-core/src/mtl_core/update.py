"""The end of every step: unscale, clip, update, and look at the losses again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import MicroBatches
from mtl_core.distributed import is_sharded, mean_over_tasks_present_, reshard
from mtl_core.problem import Problem
from mtl_core.protocols import Event
from mtl_core.report import StepOptions

__all__ = ["events_of", "look_back", "update"]


def update(problem: Problem, optimizer: optim.Optimizer, options: StepOptions) -> None:
    """Unscale, clip and step, in this order, from gradients that are written."""
    if options.scaler is not None:
        options.scaler.unscale_(optimizer)
    if is_sharded(problem.shared):
        reshard(problem.model)
    if options.max_norm is not None:
        torch.nn.utils.clip_grad_norm_(problem.shared, options.max_norm)
    if options.scaler is None:
        optimizer.step()
    else:
        options.scaler.step(optimizer)
        options.scaler.update()


def look_back(method: object, problem: Problem, batch: Any, before: Tensor, group: dist.ProcessGroup | None) -> None:
    """Let a method that wants to know see the losses before and, evaluated once more, after the update."""
    after_step = getattr(method, "after_step", None)
    if not callable(after_step):
        return

    def after() -> Tensor:
        parts = batch if isinstance(batch, MicroBatches) else (batch,)
        with torch.no_grad():
            found = [problem.losses(part) for part in parts]
        full = torch.stack([losses.full(float("nan")) for losses in found]).nanmean(dim=0)
        present = sorted({task for losses in found for task in losses.index})
        return full if group is None else mean_over_tasks_present_(full, present, group)[0]

    after_step(before, after)


def events_of(method: object) -> tuple[Event, ...]:
    """The events that a method has to tell of this step."""
    pop: Callable[[], tuple[Event, ...]] | None = getattr(method, "pop_events", None)
    return () if pop is None else tuple(pop())
