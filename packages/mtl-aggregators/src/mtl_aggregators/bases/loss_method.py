"""The base of the methods that work on loss values alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import Adam, Mask, on_host
from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.loss_checks import check_losses, refuse_not_finite
from mtl_aggregators.bases.parameters import match_tasks, one_per_task
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, checks
from mtl_core.extension import SavedState, called_tasks, full_precision

__all__ = ["LossMethod", "TrainedLossMethod", "above", "positive", "softmax"]


def softmax(logits: Vector, present: Mask) -> Vector:
    """The softmax over the tasks present, zero for the others."""
    # exp(−∞) is exactly 0; the largest is taken out so that the others cannot overflow.
    known = np.where(present, logits, -np.inf)
    raised = np.exp(known - known.max())
    shares: Vector = raised / raised.sum()
    return shares


def positive(
    losses: Tensor | Vector, present: Tensor | Mask | None, tasks: Sequence[str] | None, *, method: str
) -> None:
    """Check that the losses of the tasks present are positive, as a method needs that takes logarithms or divides.

    Raises:
        InvalidInputError: some are not, which are named.
        NonFiniteLossError: some are NaN or infinite, which are named.
    """
    low = _at_most(losses, 0.0, present, tasks)
    if low:
        found = ", ".join(f"{name}: {loss:g}" for name, loss, _ in low)
        raise InvalidInputError(
            f"`losses` must be positive for {method}, got {found}. Add a constant to a loss that can be negative."
        )


def above(
    losses: Tensor | Vector,
    bound: Tensor | Vector | float,
    present: Tensor | Mask | None,
    tasks: Sequence[str] | None,
    *,
    method: str,
) -> None:
    """Check that the losses of the tasks present lie above a bound that is a setting of the method.

    Raises:
        InvalidInputError: some do not, which are named; or there is a bound for another number of tasks.
        NonFiniteLossError: some are NaN or infinite, which are named.
    """
    low = _at_most(losses, bound, present, tasks)
    if low:
        found = ", ".join(f"{name}: {loss:g} (bound {floor:g})" for name, loss, floor in low)
        raise InvalidInputError(
            f"`losses` must lie above their lower bound for {method}, got {found}. Add a constant to these losses, or, "
            "where the method takes it, say bound= what they stay above."
        )


def _at_most(
    losses: Tensor | Vector,
    bound: Tensor | Vector | float,
    present: Tensor | Mask | None,
    tasks: Sequence[str] | None,
) -> list[tuple[str, float, float]]:
    """Tasks present that are not above the bound, with their losses and the bounds."""
    values = on_host(losses) if isinstance(losses, Tensor) else losses
    if not math.isfinite(values.sum()):
        there = None if present is None else torch.as_tensor(present, device="cpu")
        refuse_not_finite(torch.from_numpy(values), there, tasks)
    floor = on_host(bound) if isinstance(bound, Tensor) else np.asarray(bound)
    if floor.ndim and floor.shape != values.shape:
        raise InvalidInputError(f"`losses` must hold one loss per bound, {len(floor)}, got {len(values)}.")
    # Not `values <= floor`, which is false for NaN.
    low = ~(values > floor)
    if present is not None:
        low &= present.cpu().numpy() if isinstance(present, Tensor) else present
    if not low.any():
        return []
    floors = np.broadcast_to(floor, values.shape)
    called = tasks or called_tasks(len(values))
    return [(called[i], float(values[i]), float(floors[i])) for i in np.flatnonzero(low).tolist()]


class LossMethod(SavedState, ABC):
    """A method that makes one scalar of the losses ``[m]``; its derivative by each loss is that task's weight.

    A call changes nothing but random state. What a method learns, it learns in ``after_step`` and ``start_epoch``,
    which ``mtl_core.step`` and the training loop call.

    Args:
        tasks: the tasks' names, for messages.
    """

    needs: Literal["losses"] = "losses"
    takes_present = True

    def __init__(self, *, tasks: Sequence[str] | None = None) -> None:
        super().__init__()
        self.tasks = checks.names("tasks", tasks)

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself; the scale is that of losses of 1."""

    @abstractmethod
    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar of checked losses ``[m]``; ``present`` is a boolean ``[m]`` with at least one task."""

    @full_precision
    def forward(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        """The scalar to differentiate.

        Args:
            losses: ``[m]`` of a real floating dtype.
            present: boolean ``[m]``, the tasks that have a loss in this batch; ``None`` for all.

        Returns:
            a scalar.

        Raises:
            InvalidInputError: ``losses`` is no real floating vector, or has another length than the method's settings
                or state, or a loss lies where the method is not defined.
            NonFiniteLossError: a loss is NaN or infinite; the task is named.
        """
        check_losses(losses, present, self.tasks)
        if present is None:
            present = torch.ones_like(losses, dtype=torch.bool)
        return self.scalar(losses, present)

    def reset(self) -> None:
        """Forget what was learnt; settings stay."""

    def _same_length(self, held: Tensor | Vector, losses: Tensor | Vector | Mask) -> None:
        if held.shape[-1] != len(losses):
            raise InvalidInputError(
                f"`losses` must hold {held.shape[-1]} losses, as before, got {len(losses)}. Call reset() when the "
                "number of tasks changes."
            )


class TrainedLossMethod(LossMethod):
    """A loss method with one number per task that it trains itself, by Adam, after each step.

    Args:
        lr: Adam's learning rate.
        decay: Adam's weight decay.
        start: where the numbers start, one for all or one per task.
        tasks: the tasks' names, for messages.

    Raises:
        InvalidParameterError: ``lr`` is not positive, ``decay`` is negative, or ``start`` is neither finite nor one
            number per task.
    """

    def __init__(
        self,
        *,
        lr: float,
        decay: float = 0.0,
        start: float | Sequence[float] | Tensor = 0.0,
        tasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(tasks=tasks)
        self.start = one_per_task("start", start)
        self._adam = Adam(lr=lr, decay=decay)
        self._trained: Vector | None = None

    @property
    def trained(self) -> Tensor | None:
        """The trained numbers, float64 ``[m]``; ``None`` before the first step."""
        return None if self._trained is None else torch.from_numpy(self._trained.copy())

    def trained_for(self, losses: Tensor | Vector | Mask) -> Vector:
        """The trained numbers of as many tasks; ``start`` to begin with.

        Raises:
            InvalidInputError: there were other numbers of them before, or in ``start``.
        """
        if self._trained is None:
            if self.start.ndim:
                match_tasks("start", self.start, len(losses))
            # A broadcast view has one number for all tasks, and is not to be written to.
            return np.broadcast_to(self.start.numpy(), (len(losses),)).copy()
        self._same_length(self._trained, losses)
        return self._trained

    def descend(self, gradient: Vector, active: Mask) -> None:
        """One step of Adam on the trained numbers of the active tasks."""
        self._trained = self._adam.step(self.trained_for(gradient), gradient, active)

    def reset(self) -> None:
        """Begin at ``start`` again."""
        self._trained = None
        self._adam.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The trained numbers and Adam's moments."""
        return {"trained": self.trained, "adam": self._adam.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._trained = None if state["trained"] is None else on_host(state["trained"]).copy()
        self._adam.load_state_dict(state["adam"])
