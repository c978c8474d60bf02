"""Evaluating task losses where no gradient of them is wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mtl_core import Problem
from mtl_core.extension import evaluate_without_graph, mean_over_tasks_present_, together
from mtl_teleport.conditions import Conditions

__all__ = ["probe_losses"]


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
        group = conditions.group
        with together(group), conditions.around():
            losses = evaluate_without_graph(problem, batch, parameters=parameters)
        full = losses.full(math.nan)
        # Outside of `together`: by then every rank has its losses.
        found.append(full if group is None else mean_over_tasks_present_(full, losses.index, group)[0])
    return tuple(found)
