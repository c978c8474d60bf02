r"""One network per task, with units between the stages that mix what the tasks have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core.checks import in_interval, one_of
from mtl_core.errors import InvalidInputError

__all__ = ["CrossStitch"]


class CrossStitch(TaskModel):
    r"""Towers beside each other, one per task, stitched together between their stages.

    With :math:`x_t` what task :math:`t` has after a stage, its next stage reads

    .. math:: \tilde x_t = \textstyle\sum_s \alpha_{ts} x_s

    with one :math:`\alpha \in \mathbb{R}^{m \times m}` per boundary between stages. Towers and units reach every task
    and are shared; heads are the tasks' own.

    Args:
        tower: makes one task's stages, for vectors, images or anything else; called once per task.
        heads: each task's own module on its tower's output.
        mixing: ``"full"`` as above, as in the paper; ``"sum"`` gives all tasks the same sum with one weight per task,
            1 at the start, as the released networks for NYUv2 and CityScapes do.
        own: :math:`\alpha_{tt}` at the start of ``"full"``; the other tasks' share is the rest, in equal parts.

    Raises:
        InvalidInputError: the towers do not have equally many stages.

    References:
        Misra et al., *Cross-stitch Networks for Multi-task Learning*, CVPR 2016, equation 1.

    Example:
        >>> def tower():
        ...     return [nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 4)]
        >>> model = CrossStitch(tower, {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)})
        >>> model.units.shape, model(torch.zeros(5, 3))["b"].shape
        (torch.Size([1, 2, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        tower: Callable[[], Sequence[nn.Module]],
        heads: Mapping[str, nn.Module],
        *,
        mixing: Literal["full", "sum"] = "full",
        own: float = 0.9,
    ) -> None:
        super().__init__(heads)
        self.mixing = one_of("mixing", mixing, ("full", "sum"))
        in_interval("own", own, 0, 1)
        self.towers = nn.ModuleDict({task: nn.ModuleList(tower()) for task in self.tasks})
        stages = {len(list(stages.children())) for stages in self.towers.values()}
        if len(stages) != 1 or 0 in stages:
            raise InvalidInputError(f"`tower` must give equally many stages at each call, got {sorted(stages)}.")
        m, n_units = len(self.tasks), stages.pop() - 1
        if mixing == "sum":
            start = torch.ones(n_units, m)
        else:
            rest = (1 - own) / max(m - 1, 1)
            start = torch.full((n_units, m, m), rest)
            start.diagonal(dim1=1, dim2=2).fill_(own if m > 1 else 1.0)
        self.units = nn.Parameter(start)
        self.heads = nn.ModuleDict(dict(heads))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's head."""
        return (self.heads[task],)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """What each task's head reads."""
        towers = {task: list(self.towers[task].children()) for task in self.tasks}
        values = {task: stages[0](x) for task, stages in towers.items()}
        for s, unit in enumerate(self.units, start=1):
            mixed = torch.tensordot(unit, torch.stack([values[task] for task in self.tasks]), dims=1)
            inputs = mixed.unbind(0) if self.mixing == "full" else [mixed] * len(self.tasks)
            values = {task: towers[task][s](value) for task, value in zip(self.tasks, inputs, strict=True)}
        return values

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One output per task."""
        return {task: self.heads[task](value) for task, value in self.features(x).items()}
