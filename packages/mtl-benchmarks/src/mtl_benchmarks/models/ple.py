r"""Experts of the tasks beside shared ones (CGC), in one level or several (PLE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.gating import SoftmaxGate, mixed
from mtl_core.checks import positive_int
from mtl_core.errors import InvalidInputError, InvalidParameterError

__all__ = ["CGC", "PLE"]


class _Level(nn.Module):
    """One level: each task chooses among its own experts and the shared ones, the shared path among all."""

    def __init__(
        self,
        expert: Callable[[], nn.Module],
        tasks: Sequence[str],
        *,
        n_shared: int,
        n_own: int,
        inputs: int,
        last: bool,
    ) -> None:
        super().__init__()
        self.shared_experts = nn.ModuleList(expert() for _ in range(n_shared))
        self.own_experts = nn.ModuleDict({task: nn.ModuleList(expert() for _ in range(n_own)) for task in tasks})
        self.gates = nn.ModuleDict({task: SoftmaxGate(inputs, n_own + n_shared) for task in tasks})
        # After the last level nobody reads the shared path, and without shared experts nobody reads it anywhere.
        continues = n_shared > 0 and not last
        self.shared_gate = SoftmaxGate(inputs, len(tasks) * n_own + n_shared) if continues else None

    def forward(self, own: Mapping[str, Tensor], shared: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        of_shared = [expert(shared) for expert in self.shared_experts]
        of_tasks = {task: [expert(x) for expert in self.own_experts[task].children()] for task, x in own.items()}
        found = {task: mixed(self.gates[task](x), [*of_tasks[task], *of_shared]) for task, x in own.items()}
        if self.shared_gate is None:
            return found, shared
        everything = [output for outputs in of_tasks.values() for output in outputs]
        return found, mixed(self.shared_gate(shared), [*everything, *of_shared])


class PLE(TaskModel):
    r"""Progressive layered extraction: levels of experts, some shared and some a task's own.

    At every level a task's gate weighs the outputs of its own experts, which read the task's path, and of the shared
    ones, which read the shared path; the shared path goes on with all experts' outputs, weighed by a gate of its own.

    Declared as a task's own are its head and, at the last level, its experts and gate. At earlier levels a task's
    experts reach the other tasks through the shared path, and are declared shared; without shared experts there is no
    such path, and all that is a task's is its own.

    Args:
        experts: per level, what makes one expert, for vectors or images.
        heads: each task's own module on its path.
        gate_inputs: channels of each level's input.
        n_shared: shared experts per level; with none and one own expert the tasks are separate networks.
        n_own: experts per task and level.

    Raises:
        InvalidInputError: ``experts`` is empty or ``gate_inputs`` is not as long.
        InvalidParameterError: there would be no expert at all.

    References:
        Tang et al., *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
        Recommendations*, RecSys 2020.

    Example:
        >>> import torch
        >>> levels = [lambda: nn.Linear(3, 4), lambda: nn.Linear(4, 4)]
        >>> heads = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)}
        >>> model = PLE(levels, heads, gate_inputs=(3, 4), n_shared=2, n_own=1)
        >>> model(torch.zeros(5, 3))["b"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        experts: Sequence[Callable[[], nn.Module]],
        heads: Mapping[str, nn.Module],
        *,
        gate_inputs: Sequence[int],
        n_shared: int = 1,
        n_own: int = 1,
    ) -> None:
        super().__init__(heads)
        if not experts or len(gate_inputs) != len(experts):
            raise InvalidInputError(
                f"`gate_inputs` must hold one number per level, got {len(gate_inputs)} for {len(experts)} levels."
            )
        if type(n_shared) is not int or type(n_own) is not int or min(n_shared, n_own) < 0 or n_shared + n_own == 0:
            raise InvalidParameterError(
                f"`n_shared` and `n_own` must be whole numbers of 0 or more with at least one expert, got {n_shared!r} "
                f"and {n_own!r}."
            )
        self.n_shared = n_shared
        self.levels = nn.ModuleList(
            _Level(
                expert,
                self.tasks,
                n_shared=n_shared,
                n_own=n_own,
                inputs=positive_int("gate_inputs", inputs),
                last=level == len(experts) - 1,
            )
            for level, (expert, inputs) in enumerate(zip(experts, gate_inputs, strict=True))
        )
        self.heads = nn.ModuleDict(dict(heads))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's head, and its experts and gates where no other task is reached by them."""
        alone = [*self.levels][-1:] if self.n_shared else [*self.levels]
        parts = [part for level in alone for part in (level.own_experts[task], level.gates[task])]
        return (*parts, self.heads[task])

    def gate_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Each task's weights at the first level, ``[b, n_own + n_shared]``, its own experts first."""
        gates = self.levels[0].get_submodule("gates")
        return {task: gates.get_submodule(task)(x) for task in self.tasks}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One output per task."""
        own, shared = dict.fromkeys(self.tasks, x), x
        for level in self.levels:
            own, shared = level(own, shared)
        return {task: self.heads[task](value) for task, value in own.items()}


class CGC(PLE):
    """Customised gate control: one level of experts, some shared and some a task's own.

    Args:
        expert: makes one expert, for vectors or images.
        heads: each task's own module on its mixture.
        gate_inputs: channels of the input.
        n_shared: shared experts; with none and one own expert the tasks are separate networks.
        n_own: experts per task; with none this is a mixture whose experts are all shared.

    References:
        Tang et al., *Progressive Layered Extraction (PLE)*, RecSys 2020.

    Example:
        >>> import torch
        >>> model = CGC(lambda: nn.Linear(3, 4), {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)}, gate_inputs=3)
        >>> model.gate_weights(torch.zeros(5, 3))["a"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        expert: Callable[[], nn.Module],
        heads: Mapping[str, nn.Module],
        *,
        gate_inputs: int,
        n_shared: int = 1,
        n_own: int = 1,
    ) -> None:
        super().__init__([expert], heads, gate_inputs=(gate_inputs,), n_shared=n_shared, n_own=n_own)
