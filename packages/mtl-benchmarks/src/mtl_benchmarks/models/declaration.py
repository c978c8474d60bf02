"""What every model here declares: its tasks, and which parameters are shared and which are one task's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from mtl_core.errors import InvalidInputError, NoLossesError, UnknownNameError

__all__ = ["MultiTaskModel", "TaskModel", "check_declaration", "count", "task_names"]


@runtime_checkable
class MultiTaskModel(Protocol):
    """A model that says which of its parameters the tasks compete for.

    The two sets are what ``Problem`` and everything above it need::

        Problem(model, losses, shared=model.shared_parameters(), tasks=model.tasks)

    ``model(x)`` returns one output per task, as a mapping from the task's name. :func:`check_declaration` holds a model
    to the protocol.
    """

    tasks: tuple[str, ...]

    def shared_parameters(self) -> list[nn.Parameter]:
        """What the tasks share, in the model's order."""
        ...

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """What is one task's own, in the model's order: no other task's output depends on it."""
        ...


class TaskModel(nn.Module, ABC):
    """A module that names each task's own parts; everything else in it is shared.

    Args:
        tasks: the tasks' names, in order.

    Raises:
        NoLossesError: there is none.
        InvalidInputError: a name occurs twice, is empty or has a dot, which names of modules cannot have.

    Example:
        >>> class Two(TaskModel):
        ...     def __init__(self):
        ...         super().__init__(("a", "b"))
        ...         self.trunk = nn.Linear(3, 2)
        ...         self.heads = nn.ModuleDict({task: nn.Linear(2, 1) for task in self.tasks})
        ...
        ...     def task_modules(self, task):
        ...         return (self.heads[task],)
        >>> model = Two()
        >>> count(model.shared_parameters()), count(model.task_parameters("b"))
        (8, 3)
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = task_names(tasks)

    @abstractmethod
    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The modules that are the task's own."""

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The parameters of the task's own modules.

        Raises:
            UnknownNameError: the model has no such task.
        """
        if task not in self.tasks:
            raise UnknownNameError("task", task, self.tasks)
        return [parameter for module in self.task_modules(task) for parameter in module.parameters()]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Every parameter that is no task's own, in the model's order."""
        own = {id(parameter) for task in self.tasks for parameter in self.task_parameters(task)}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]


def task_names(tasks: Iterable[str]) -> tuple[str, ...]:
    """Task names that can also name modules.

    Raises:
        NoLossesError: there is none.
        InvalidInputError: a name occurs twice, is empty or has a dot.
    """
    if isinstance(tasks, str):
        raise InvalidInputError(f"`tasks` must be a sequence of names, got the single string {tasks!r}.")
    names = tuple(tasks)
    if not names:
        raise NoLossesError("`tasks` must name at least one task, got none.")
    if len(set(names)) != len(names):
        raise InvalidInputError(f"`tasks` must be distinct, got {names}.")
    for name in names:
        if not name or "." in name:
            raise InvalidInputError(f"`tasks` must be names without a dot, got {name!r}.")
    return names


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers some parameters hold."""
    return sum(parameter.numel() for parameter in parameters)


def check_declaration(model: nn.Module) -> None:
    """Make sure that a model declares each of its parameters once, as shared or as one task's own.

    Raises:
        InvalidInputError: it lacks a part of the protocol, or a parameter is declared twice or not at all.
    """
    if not isinstance(model, MultiTaskModel):
        raise InvalidInputError(
            f"`model` must have `tasks`, `shared_parameters` and `task_parameters`, got {type(model).__name__} without "
            "them. Derive it from TaskModel, or see MultiTaskModel."
        )
    owners: dict[int, str] = {}
    for owner, parameters in [
        ("the shared ones", model.shared_parameters()),
        *((f"task {task!r}", model.task_parameters(task)) for task in model.tasks),
    ]:
        for parameter in parameters:
            if id(parameter) in owners:
                raise InvalidInputError(
                    f"each parameter must be declared once, got one of shape {tuple(parameter.shape)} in "
                    f"{owners[id(parameter)]} and in {owner}."
                )
            owners[id(parameter)] = owner
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in owners]
    if missing:
        raise InvalidInputError(f"each parameter must be declared, got none for {', '.join(missing)}.")
    if len(owners) > len(list(model.parameters())):
        raise InvalidInputError("declared parameters must be parameters of the model, got others among them.")
