"""Evaluating losses whose graph nobody wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtl_core.preservation import Trace
from mtl_core.problem import Problem
from mtl_core.recomputation import graph_is_dropped
from mtl_core.task_losses import TaskLosses

__all__ = ["evaluate_without_graph", "without_graph"]

_SIGNS = ("does not require grad", "does not have a grad_fn", "not have been used in the graph")
"""What torch says where a function differentiates and gradients are switched off."""


def evaluate_without_graph(
    problem: Problem, batch: Any, *, parameters: Mapping[str, Tensor] | None = None
) -> TaskLosses:
    """The losses of a batch, detached; a graph is made only where the user's function needs one, and then forgotten.

    Losses that differentiate by themselves, such as the residual of a differential equation or the error of a force,
    cannot be evaluated under ``torch.no_grad``. That cannot be seen beforehand: the evaluation is tried without a
    graph, and where torch refuses, buffers and random state are put back and it is repeated with one. The problem
    remembers, so that this happens once.

    Args:
        problem: the problem.
        batch: what its losses take.
        parameters: tensors in place of the model's own, as for ``Problem.losses``.

    Returns:
        the losses, without graph and without features.
    """
    return without_graph(problem, lambda: problem.losses(batch, parameters=parameters))


def without_graph(problem: Problem, evaluate: Callable[[], TaskLosses]) -> TaskLosses:
    """As ``evaluate_without_graph``, for any way of evaluating a problem's losses.

    Args:
        problem: whose losses they are.
        evaluate: evaluates them.
    """
    if not problem.differentiates:
        trace = Trace(problem.model)
        try:
            with torch.no_grad():
                return evaluate().detached()
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _SIGNS):
                raise
            trace.restore()
        finally:
            # Copies of parameters that autocast made here have no graph, and would give the next forward pass of the
            # same region none.
            torch.clear_autocast_cache()
        problem.differentiates = True
    with torch.enable_grad(), graph_is_dropped():
        return evaluate().detached()
