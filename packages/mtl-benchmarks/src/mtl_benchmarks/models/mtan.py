r"""A shared network from which each task takes what it attends to, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core.checks import one_of, positive_int
from mtl_core.errors import InvalidInputError

__all__ = ["MTAN"]


class MTAN(TaskModel):
    r"""A trunk of stages, and per task a mask on the output of every stage.

    With :math:`p_s` the output of stage :math:`s`, a task's :math:`a_0 = A_0(p_0) \odot p_0` and

    .. math:: a_s = A_s\big([p_s, T_s(a_{s-1})]\big) \odot p_s,

    where :math:`T_s` brings what was attended to one stage earlier to the shape of this one. The head reads the last
    :math:`a_s`. Stages and :math:`T` are shared, attention networks and heads are the tasks' own.

    Args:
        stages: the trunk, for vectors ``[b, c]`` or images ``[b, c, h, w]``.
        transitions: :math:`T_1, T_2, \dots`, one less than stages; its outputs are as large as the stage's.
        channels: channels of each stage's output.
        heads: each task's own module on what it attended to last.
        kind: what the stages work on.

    Raises:
        InvalidInputError: transitions or channels are not as many as they must be.

    Note:
        A mask is a linear map per position, batch normalisation, ReLU, another linear map, batch normalisation and a
        sigmoid, as in the paper; with vectors a training batch therefore needs two rows at least. The paper reads
        the trunk within a stage as well; for its own networks see :class:`~mtl_benchmarks.models.SegNetMTAN`.

    References:
        Liu et al., *End-to-End Multi-Task Learning with Attention*, CVPR 2019, section 3.2.

    Example:
        >>> stages = [nn.Linear(3, 4), nn.Linear(4, 6)]
        >>> heads = {"a": nn.Linear(6, 1), "b": nn.Linear(6, 2)}
        >>> model = MTAN(stages, [nn.Linear(4, 6)], channels=(4, 6), heads=heads, kind="vectors")
        >>> model(torch.zeros(5, 3))["b"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        transitions: Sequence[nn.Module],
        *,
        channels: Sequence[int],
        heads: Mapping[str, nn.Module],
        kind: Literal["vectors", "images"] = "images",
    ) -> None:
        super().__init__(heads)
        one_of("kind", kind, ("vectors", "images"))
        if not stages or len(transitions) != len(stages) - 1 or len(channels) != len(stages):
            raise InvalidInputError(
                "`transitions` must be one less than `stages` and `channels` as many, got "
                f"{len(transitions)}, {len(stages)} and {len(channels)}."
            )
        self.stages = nn.ModuleList(stages)
        self.transitions = nn.ModuleList(transitions)
        self.attention = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    _mask(positive_int("channels", c) if s == 0 else 2 * c, c, kind) for s, c in enumerate(channels)
                )
                for task in self.tasks
            }
        )
        self.heads = nn.ModuleDict(dict(heads))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's attention networks and head."""
        return (self.attention[task], self.heads[task])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One output per task."""
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return {task: self.heads[task](self._attend(task, outputs)) for task in self.tasks}

    def _attend(self, task: str, outputs: Sequence[Tensor]) -> Tensor:
        first, *later = self.attention[task].children()
        found: Tensor = first(outputs[0]) * outputs[0]
        for mask, transition, output in zip(later, self.transitions, outputs[1:], strict=True):
            found = mask(torch.cat([output, transition(found)], dim=1)) * output
        return found


def _mask(inputs: int, channels: int, kind: Literal["vectors", "images"]) -> nn.Sequential:
    def layer(a: int, b: int) -> tuple[nn.Module, nn.Module]:
        if kind == "images":
            return nn.Conv2d(a, b, 1), nn.BatchNorm2d(b)
        return nn.Linear(a, b), nn.BatchNorm1d(b)

    return nn.Sequential(*layer(inputs, channels), nn.ReLU(), *layer(channels, channels), nn.Sigmoid())
