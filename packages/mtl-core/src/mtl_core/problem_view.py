"""A problem that is looked at through its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mtl_core.problem import Problem
from mtl_core.task_losses import TaskLosses

__all__ = ["ProblemView"]


class ProblemView(Problem):
    """A problem whose losses are made into others: their logarithms, or some of them only.

    Everything else is the problem's own, what it remembers included.

    Args:
        problem: what is looked at.
        transform: from its losses to those of the view.
    """

    # Beside the dictionary, which is the problem's own: there two views would overwrite each other's.
    __slots__ = ("_transform", "_under")

    def __init__(self, problem: Problem, transform: Callable[[TaskLosses], TaskLosses]) -> None:
        self.__dict__ = problem.__dict__
        self._under = problem
        self._transform = transform

    def losses(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """The losses of the view."""
        return self._transform(self._under.losses(batch, parameters=parameters))
