"""The losses of one batch, and how they are read from what a user's function returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl_core import checks
from mtl_core.errors import InvalidInputError, NoLossesError, NonScalarLossError

__all__ = ["Features", "TaskLosses", "read_features", "read_returned"]

Features = Any
"""Outputs of the shared trunk from which every head starts: a tensor, or any nesting of tuples, lists and mappings."""


@dataclass(frozen=True)
class TaskLosses:
    """The losses of the tasks that are present in one batch.

    Attributes:
        outputs: a tuple of ``k`` scalar losses, or one tensor ``[k]`` where the user's function computed them jointly.
        tasks: names of the ``k`` tasks that are present.
        index: position of each of them in ``Problem.tasks``.
        n_tasks: number ``m`` of tasks of the problem, absent ones included.
        features: the trunk's outputs, if the user's function returned them.
    """

    outputs: tuple[Tensor, ...] | Tensor
    tasks: tuple[str, ...]
    index: tuple[int, ...]
    n_tasks: int
    features: tuple[Tensor, ...] | None = None

    @property
    def values(self) -> Tensor:
        """The losses of the present tasks, ``[k]``, differentiable."""
        return self.outputs if isinstance(self.outputs, Tensor) else torch.stack(self.outputs)

    @property
    def is_complete(self) -> bool:
        """Whether every task of the problem is present."""
        return len(self.index) == self.n_tasks

    def full(self, fill: float = 0.0) -> Tensor:
        """The losses of all tasks, ``[m]``, with ``fill`` where a task is absent."""
        values = self.values
        if self.is_complete:
            return values
        index = torch.tensor(self.index, device=values.device)
        return values.new_full((self.n_tasks,), fill).index_put((index,), values)

    def detached(self) -> TaskLosses:
        """The same values without their graph."""
        outputs = self.outputs
        plain = outputs.detach() if isinstance(outputs, Tensor) else tuple(loss.detach() for loss in outputs)
        return TaskLosses(plain, self.tasks, self.index, self.n_tasks)


def read_features(features: Features) -> tuple[Tensor, ...] | None:
    """The tensors among the trunk's outputs, each once; ``None`` where there are none to speak of.

    Args:
        features: a tensor, or any nesting of tuples, lists and mappings of tensors; ``None`` entries are left out.

    Raises:
        InvalidInputError: something in it is no tensor, or has no graph.
    """
    if features is None:
        return None
    leaves = [leaf for leaf in pytree.tree_leaves(features) if leaf is not None]
    strangers = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
    if strangers or not leaves:
        raise InvalidInputError(
            "`features` must be a tensor or a nesting of tensors, the trunk's outputs, got "
            f"{', '.join(strangers) or 'none'}. Leave out what is no tensor, or return the losses alone."
        )
    loose = [i for i, z in enumerate(leaves) if not z.requires_grad]
    if loose and torch.is_grad_enabled():
        raise InvalidInputError(
            "`features` must be outputs of the trunk with their graph, got detached tensors at "
            f"{loose}. Do not detach them before computing the losses, and return no others."
        )
    # Twice the same tensor would count its part of the gradient twice.
    return tuple({id(z): z for z in leaves}.values())


def read_returned(returned: Any, tasks: tuple[str, ...]) -> TaskLosses:
    """The losses in what a user's function returned: ``losses`` or ``(losses, features)``.

    Args:
        returned: a tensor ``[m]`` or a mapping from task to scalar, alone or with the features.
        tasks: the names of all tasks.

    Raises:
        NoLossesError: no task is present.
        NonScalarLossError: a task's loss is not a scalar tensor.
        InvalidInputError: it is something else, has an unknown task or the wrong number of losses, or the features have
            no graph.
    """
    features: tuple[Tensor, ...] | None = None
    if isinstance(returned, tuple):
        if len(returned) != 2 or (isinstance(returned[0], Tensor) and returned[0].ndim == 0):
            raise InvalidInputError(
                "`losses` must return a tensor [m], a mapping task -> scalar, or (losses, features), got a "
                f"tuple of {len(returned)}. "
                "Stack the scalars with torch.stack, or return a mapping."
            )
        returned, found = returned
        features = read_features(found)
    if isinstance(returned, Mapping):
        return _read_mapping(returned, tasks, features)
    if not isinstance(returned, Tensor):
        raise InvalidInputError(
            "`losses` must return a tensor [m], a mapping task -> scalar, or (losses, features), got "
            f"{type(returned).__name__}."
            f"{' Stack the scalars with torch.stack, or return a mapping.' if isinstance(returned, list) else ''}"
        )
    if returned.ndim != 1:
        raise NonScalarLossError(
            f"`losses` must return one number per task, shape ({len(tasks)},), got shape {tuple(returned.shape)}. "
            "Reduce each task's loss over the batch, e.g. with .mean()."
        )
    checks.real_losses("`losses`", returned)
    if returned.shape[0] == 0:
        raise NoLossesError("`losses` must return at least one loss, got an empty tensor.")
    if returned.shape[0] != len(tasks):
        raise InvalidInputError(
            f"`losses` must return {len(tasks)} losses, one for each of {tasks}, got {returned.shape[0]}. "
            "To leave a task out of a batch, return a mapping without it."
        )
    return TaskLosses(returned, tasks, tuple(range(len(tasks))), len(tasks), features)


def _read_mapping(
    found: Mapping[str, Tensor | None], tasks: tuple[str, ...], features: tuple[Tensor, ...] | None
) -> TaskLosses:
    unknown = [name for name in found if name not in tasks]
    if unknown:
        raise InvalidInputError(f"`losses` must return losses of {tasks}, got also {unknown}.")
    index = tuple(i for i, name in enumerate(tasks) if found.get(name) is not None)
    if not index:
        raise NoLossesError(f"`losses` must return the loss of at least one of {tasks}, got none.")
    present = tuple(tasks[i] for i in index)
    outputs = tuple(checks.scalar_loss(name, found[name]) for name in present)
    return TaskLosses(outputs, present, index, len(tasks), features)
