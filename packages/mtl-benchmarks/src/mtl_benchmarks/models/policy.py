"""Policies that imitate the experts of MT10: one head per task, or one for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.sac import perceptron
from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_core import InvalidInputError
from mtl_core.checks import one_of, positive_int

__all__ = ["ClonedPolicy"]


class ClonedPolicy(TaskModel):
    """A perceptron from observations to actions, trained on what experts do; each task has observations of its own.

    Args:
        observations: numbers per observation; 39 in Meta-World.
        actions: numbers per action.
        tasks: the tasks' names.
        hidden: units of the shared layers.
        heads: ``"per_task"`` for one linear output per task, its own; ``"one"`` for one that all tasks share, none of
            them told which it is.

    Raises:
        InvalidInputError: there is no hidden layer, or a setting is none of those named above.

    Example:
        >>> policy = ClonedPolicy(39, 4, tasks=("reach", "push"), hidden=(32,))
        >>> actions = policy({"reach": torch.zeros(5, 39), "push": torch.zeros(3, 39)})
        >>> {task: tuple(value.shape) for task, value in actions.items()}
        {'reach': (5, 4), 'push': (3, 4)}
    """

    def __init__(
        self,
        observations: int = 39,
        actions: int = 4,
        *,
        tasks: Iterable[str] = MT10_TASKS,
        hidden: Sequence[int] = (400, 400, 400),
        heads: Literal["per_task", "one"] = "per_task",
    ) -> None:
        super().__init__(tasks)
        one_of("heads", heads, ("per_task", "one"))
        if not hidden:
            raise InvalidInputError("`hidden` must name at least one layer, got none.")
        positive_int("actions", actions)
        *before, last = hidden
        self.trunk = nn.Sequential(*perceptron(observations, before, last), nn.ReLU())
        names = self.tasks if heads == "per_task" else ("all",)
        self.heads = nn.ModuleDict({name: perceptron(last, (), actions) for name in names})
        self.per_task = heads == "per_task"

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's output, where it has one of its own."""
        return (self.heads[task],) if self.per_task else ()

    def predict(self, task: str, features: Tensor) -> Tensor:
        """A task's actions from what the trunk gives."""
        found: Tensor = self.heads[task if self.per_task else "all"](features)
        return found

    def act(self, task: str, observations: Tensor) -> Tensor:
        """Actions within [−1, 1], as the simulator takes them."""
        return self.predict(task, self.trunk(observations)).clamp(-1, 1)

    def forward(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Actions ``[b_t, actions]`` from observations ``[b_t, observations]`` of some or all tasks."""
        # One pass through the trunk for all tasks: small layers cost their overhead once.
        features = self.trunk(torch.cat(list(observations.values()))).split([len(x) for x in observations.values()])
        return {task: self.predict(task, part) for task, part in zip(observations, features, strict=True)}
