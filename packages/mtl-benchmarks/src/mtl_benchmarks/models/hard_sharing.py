"""One trunk, one head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel

__all__ = ["HardSharing"]


class HardSharing(TaskModel):
    """A trunk whose output every head reads.

    Args:
        trunk: what all tasks share.
        heads: each task's own module on the trunk's output.

    References:
        Caruana, *Multitask Learning*, Machine Learning 28, 1997.

    Example:
        >>> import torch
        >>> model = HardSharing(nn.Linear(3, 4), {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)})
        >>> {task: tuple(value.shape) for task, value in model(torch.zeros(5, 3)).items()}
        {'a': (5, 1), 'b': (5, 2)}
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__(heads)
        self.trunk = trunk
        self.heads = nn.ModuleDict(dict(heads))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's head."""
        return (self.heads[task],)

    def features(self, x: Tensor) -> Tensor:
        """What all heads read."""
        found: Tensor = self.trunk(x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One output per task."""
        features = self.features(x)
        return {task: self.heads[task](features) for task in self.tasks}
