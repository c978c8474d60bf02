"""The end of every step: unscale, clip, update, and look at the losses again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, optim

from mtl_core.accumulation import MicroBatches
from mtl_core.distributed import is_sharded, mean_over_tasks_present_, reshard
from mtl_core.errors import InvalidInputError
from mtl_core.problem import Problem
from mtl_core.protocols import Event
from mtl_core.report import SkippedUpdate, StepOptions

__all__ = ["events_of", "look_back", "refuse_closure", "update"]


def refuse_closure(optimizer: optim.Optimizer) -> None:
    """Make sure that an optimiser takes its step from gradients that are there.

    Raises:
        InvalidInputError: it must evaluate the loss itself, as ``LBFGS`` does.
    """
    if _needs_closure(type(optimizer).step):
        raise InvalidInputError(
            f"`optimizer` must make its step from gradients, got {type(optimizer).__name__}, whose step() evaluates "
            "the loss itself by a closure. Use one without, such as Adam or SGD."
        )


@cache
def _needs_closure(step: Callable[..., Any]) -> bool:
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def update(problem: Problem, optimizer: optim.Optimizer, options: StepOptions) -> tuple[SkippedUpdate, ...]:
    """Unscale, clip and step, in this order, from gradients that are written.

    Returns:
        nothing, or that there was no step: a gradient scaler leaves the parameters alone where a gradient has
        overflowed, and lowers its scale.
    """
    if options.scaler is not None:
        options.scaler.unscale_(optimizer)
    if is_sharded(problem.shared):
        reshard(problem.model)
    if options.max_norm is not None:
        torch.nn.utils.clip_grad_norm_(problem.shared, options.max_norm)
    if options.scaler is None:
        optimizer.step()
        return ()
    before = options.scaler.get_scale()
    options.scaler.step(optimizer)
    options.scaler.update()
    after = options.scaler.get_scale()
    return (SkippedUpdate(after),) if after < before else ()


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
