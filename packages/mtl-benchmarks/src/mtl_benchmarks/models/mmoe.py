r"""Multi-gate mixture of experts: all experts are shared, each task weighs them itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.gating import SoftmaxGate, mixed
from mtl_core.checks import positive_int

__all__ = ["MMoE"]


class MMoE(TaskModel):
    r"""Experts :math:`f_1, \dots, f_n` and per task a gate :math:`g^t`: the head reads :math:`\sum_i g^t_i(x) f_i(x)`.

    Gates are softmax of a linear map of the input. Experts are shared, gates and heads are the tasks' own.

    Args:
        expert: makes one expert, for vectors or images; called ``n_experts`` times.
        heads: each task's own module on its mixture.
        n_experts: how many experts; with one this is hard sharing.
        gate_inputs: channels of the input, which the gates read.

    References:
        Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*, KDD 2018.

    Example:
        >>> import torch
        >>> heads = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)}
        >>> model = MMoE(lambda: nn.Linear(3, 4), heads, n_experts=3, gate_inputs=3)
        >>> model(torch.zeros(5, 3))["b"].shape, model.gate_weights(torch.zeros(5, 3))["a"].shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        expert: Callable[[], nn.Module],
        heads: Mapping[str, nn.Module],
        *,
        n_experts: int,
        gate_inputs: int,
    ) -> None:
        super().__init__(heads)
        self.experts = nn.ModuleList(expert() for _ in range(positive_int("n_experts", n_experts)))
        self.gates = nn.ModuleDict({task: SoftmaxGate(gate_inputs, n_experts) for task in self.tasks})
        self.heads = nn.ModuleDict(dict(heads))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's gate and head."""
        return (self.gates[task], self.heads[task])

    def gate_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Each task's weights of the experts, ``[b, n_experts]``."""
        return {task: self.gates[task](x) for task in self.tasks}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One output per task."""
        outputs = [expert(x) for expert in self.experts]
        return {task: self.heads[task](mixed(weights, outputs)) for task, weights in self.gate_weights(x).items()}
