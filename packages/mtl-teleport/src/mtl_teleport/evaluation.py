"""Evaluating task losses where no gradient of them is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtl_core.distributed import mean_over_tasks_present_
from mtl_core.preservation import Trace
from mtl_core.problem import Problem, TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.conditions import Conditions

__all__ = ["evaluate_at", "evaluate_without_graph", "probe_losses"]

_NO_GRAPH = ("does not require grad", "does not have a grad_fn", "appears to not have been used in the graph")


def evaluate_without_graph(problem: Problem, batch: Any, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
    """The task losses, detached; with a graph meanwhile only where the losses themselves differentiate.

    Losses that call ``torch.autograd.grad`` on the way, on a residual of a differential equation or on an energy for
    its forces, cannot run without a graph. That shows when they are tried, which leaves buffers and random state as
    they were.

    Args:
        problem: the problem.
        batch: what its losses take.
        parameters: tensors in place of the model's own, by name.

    Raises:
        RuntimeError: what the losses raise with a graph as well.
    """
    return _detached_of(problem, lambda: problem.losses(batch, parameters=parameters))


def evaluate_at(session: AdapterSession, batch: Any, parameters: Mapping[str, Tensor]) -> TaskLosses:
    """The same in a session, under its conditions.

    Args:
        session: the problem with its adapter.
        batch: what the losses take.
        parameters: where.
    """
    return _detached_of(session.problem, lambda: session.evaluate(batch, parameters=parameters))


def probe_losses(
    problem: Problem,
    batches: Sequence[Any],
    parameters: Mapping[str, Tensor] | None = None,
    *,
    conditions: Conditions = Conditions(),
) -> tuple[Tensor, ...]:
    """The losses of every batch, ``[m]`` each, detached, NaN where a task is absent; means over a group.

    Args:
        problem: the problem.
        batches: the probe batches.
        parameters: tensors in place of the model's own, by name.
        conditions: under which they are evaluated.
    """
    found = []
    for batch in batches:
        with conditions.around():
            losses = evaluate_without_graph(problem, batch, parameters)
        full = losses.full(math.nan)
        group = conditions.group
        found.append(full if group is None else mean_over_tasks_present_(full, losses.index, group)[0])
    return tuple(found)


def _detached_of(problem: Problem, evaluate: Callable[[], TaskLosses]) -> TaskLosses:
    trace = Trace(problem.model)
    try:
        with torch.no_grad():
            losses = evaluate()
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _NO_GRAPH):
            raise
        trace.restore()
        with torch.enable_grad():
            losses = evaluate()
    outputs = losses.outputs
    detached = outputs.detach() if isinstance(outputs, Tensor) else tuple(output.detach() for output in outputs)
    return replace(losses, outputs=detached, features=None)
