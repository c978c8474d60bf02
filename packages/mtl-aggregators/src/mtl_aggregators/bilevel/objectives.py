"""Upper-level objectives: what the weights of a bilevel method are to minimise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from mtl_aggregators.bases.adam import Adam, Mask, on_host
from mtl_aggregators.bases.loss_method import softmax
from mtl_aggregators.bases.parameters import one_per_task
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, UnknownNameError, checks
from mtl_core.extension import SavedState

__all__ = ["MainTasks", "Outcome", "Responds", "Upper", "WorstCaseDecrement", "positions"]


def positions(names: Sequence[str], tasks: Sequence[str]) -> list[int]:
    """Where tasks stand among all.

    Raises:
        UnknownNameError: a name is not among ``tasks``.
    """
    for name in names:
        if name not in tasks:
            raise UnknownNameError("task", name, tasks)
    return [tuple(tasks).index(name) for name in names]


@dataclass(frozen=True)
class Outcome:
    """What a step of the optimiser did to the losses.

    Attributes:
        tasks: the tasks' names.
        before: the losses ``[m]`` at the point where the step began, constants; NaN for an absent task.
        after: the losses ``[m]`` at the point where it ended; NaN for an absent task. Differentiable where the
            hypergradient is exact.
        weights: the task weights ``[m]`` that the step was made with.

    All are float64 on the CPU.
    """

    tasks: tuple[str, ...]
    before: Tensor
    after: Tensor
    weights: Tensor

    @cached_property
    def present(self) -> Mask:
        """The tasks with both losses, boolean array ``[m]``."""
        found: Mask = ~(np.isnan(on_host(self.before)) | np.isnan(on_host(self.after)))
        return found


@runtime_checkable
class Responds(Protocol):
    """An upper objective that is told the outcome after the weights have moved, as the adversary of a game needs it."""

    def respond(self, outcome: Outcome, /) -> None:
        """Move."""


Upper = Callable[[Outcome], Tensor]
r"""An objective :math:`R(\lambda, \theta)`: from an outcome to a scalar, to be minimised over the weights."""


class WorstCaseDecrement(SavedState):
    r"""The decrement of the worst task, as a game against task weights :math:`\rho`.

    .. math:: R(\lambda, \theta) = \max_{\rho\in\Delta} \sum_i \rho_i \bigl(f_i(A(\lambda, \theta)) - f_i(\theta)\bigr),
        \qquad \rho = \mathrm{softmax}(\beta b / f)

    With a trained adversary, :math:`b` ascends by Adam along :math:`f(A(\lambda, \theta)) - f(\theta)`, and the value
    is :math:`\sum_i \rho_i f_i(A(\lambda, \theta))`: the rest does not depend on :math:`\lambda`. The exact one puts
    all its weight on the worst task of the batch, so that the value is the maximum itself.

    Args:
        beta: :math:`\beta > 0`; of the trained adversary.
        lr: Adam's learning rate; of the trained adversary.
        bound: a lower bound of the losses, one number or one per task; :math:`f` is what lies above it.
        adversary: ``"trained"``, the paper's algorithm, or ``"exact"``.

    Raises:
        InvalidParameterError: ``beta`` or ``lr`` is not positive, ``bound`` is not finite, or ``adversary`` is neither.

    Note:
        A trained adversary starts at equal weights and moves as slowly as the task weights do. Until it has moved, what
        is minimised is the sum of the losses after the step, which favours the tasks with the longest gradients.

    References:
        Chen et al., *Feed m Birds with One Scone: Accelerating Multi-task Gradient Balancing via Bi-level
        Optimization*, equations 4 and 11, appendix C.

    Example:
        >>> import torch
        >>> losses = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.9])
        >>> outcome = Outcome(("a", "b"), *losses, torch.tensor([0.5, 0.5]))
        >>> round(float(WorstCaseDecrement(adversary="exact")(outcome)), 4)
        -0.1
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        lr: float = 1e-4,
        bound: float | Sequence[float] | Tensor = 0.0,
        adversary: Literal["trained", "exact"] = "trained",
    ) -> None:
        super().__init__()
        self.adversary = checks.one_of("adversary", adversary, ("trained", "exact"))
        self.beta = checks.positive("beta", beta)
        self.bound = one_per_task("bound", bound)
        self._adam = Adam(lr=lr)
        self._b: Vector | None = None

    def _distance(self, outcome: Outcome) -> Vector:
        return np.where(outcome.present, on_host(outcome.before) - self.bound.numpy(), 1.0)

    def _adversary(self, outcome: Outcome) -> Vector:
        if self._b is None:
            self._b = np.zeros(len(outcome.tasks))
        return softmax(self.beta * self._b / self._distance(outcome), outcome.present)

    def _change(self, outcome: Outcome) -> Tensor:
        # An absent task, whose change is NaN, is never the worst.
        return (outcome.after - outcome.before).masked_fill(~torch.from_numpy(outcome.present), float("-inf"))

    def task_weights(self, outcome: Outcome) -> Tensor:
        r"""The adversary's weights :math:`\rho` ``[m]``, zero for an absent task."""
        if self.adversary == "exact":
            return nn.functional.one_hot(self._change(outcome).argmax(), len(outcome.tasks)).to(torch.float64)
        return torch.from_numpy(self._adversary(outcome))

    def forward(self, outcome: Outcome) -> Tensor:
        """The value for the present adversary."""
        if self.adversary == "exact":
            return self._change(outcome).max()
        return self.task_weights(outcome) @ outcome.after.nan_to_num()

    def respond(self, outcome: Outcome) -> None:
        """Let a trained adversary take its step."""
        if self.adversary == "exact":
            return
        rho = self._adversary(outcome)
        gain = np.where(outcome.present, on_host(outcome.after) - on_host(outcome.before), 0.0)
        # The gradient of ρ·gain through ρ = softmax(βb/f); Adam descends, hence the minus below.
        slope = self.beta / self._distance(outcome) * rho * (gain - rho @ gain)
        assert self._b is not None
        self._b = self._adam.step(self._b, -slope, outcome.present)

    def reset(self) -> None:
        """Start from equal weights again."""
        self._b = None
        self._adam.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The adversary's parameters and Adam's moments."""
        held = None if self._b is None else torch.from_numpy(self._b.copy())
        return {"b": held, "adam": self._adam.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._b = None if state["b"] is None else on_host(state["b"]).copy()
        self._adam.load_state_dict(state["adam"])


class MainTasks(SavedState):
    r"""The losses of the tasks that count: auxiliary learning.

    .. math:: R(\lambda, \theta) = \sum_{i \in \text{main}} f_i(A(\lambda, \theta))

    Args:
        main: names of the main tasks.

    Raises:
        InvalidInputError: ``main`` is empty.
        UnknownNameError: when used with a problem that has no such task.

    References:
        Chen et al., *Feed m Birds with One Scone*, section 3.5 and equation 13.
    """

    def __init__(self, *main: str) -> None:
        super().__init__()
        if not main:
            raise InvalidInputError("`main` must name at least one task, got none.")
        self.main = main

    def forward(self, outcome: Outcome) -> Tensor:
        """The sum of the main tasks' losses."""
        return outcome.after[positions(self.main, outcome.tasks)].sum()
