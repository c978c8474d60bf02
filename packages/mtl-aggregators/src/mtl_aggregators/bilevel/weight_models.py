"""How task weights are parameterised where a bilevel method trains them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import Adam, Mask, on_host
from mtl_aggregators.bases.facts import Scale
from mtl_aggregators.bases.loss_method import above, softmax
from mtl_aggregators.bases.parameters import one_per_task
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, UnknownNameError, checks
from mtl_core.extension import SavedState

__all__ = ["AuxiliaryWeights", "SoftmaxWeights", "WeightModel"]


class WeightModel(SavedState, ABC):
    """Trainable task weights, in float64 arrays on the host.

    Args:
        lr: learning rate of the Adam that trains them.

    Attributes:
        owner: the method that they are of, for messages.
    """

    def __init__(self, *, lr: float) -> None:
        super().__init__()
        self.owner = type(self).__name__
        self._adam = Adam(lr=lr)
        self._held: Vector | None = None

    @property
    @abstractmethod
    def scale(self) -> Scale:
        """The sum of the weights over ``m``, at the start."""

    @abstractmethod
    def start(self, tasks: Sequence[str]) -> Vector:
        """The parameters before the first step, ``[m]``."""

    @abstractmethod
    def free(self, tasks: Sequence[str], present: Mask) -> Mask:
        """Which weights are trained on this batch, ``[m]``."""

    @abstractmethod
    def weights(self, losses: Vector, tasks: Sequence[str], present: Mask) -> Vector:
        """The weights ``[m]``, zero for an absent task.

        Args:
            losses: ``[m]``, constants; NaN for an absent task.
            tasks: the tasks' names.
            present: ``[m]``.
        """

    @abstractmethod
    def pulled_back(self, gradient: Vector, losses: Vector, tasks: Sequence[str], present: Mask) -> Vector:
        """The gradient by the parameters, from that by the weights."""

    def parameters_for(self, tasks: Sequence[str]) -> Vector:
        """The parameters ``[m]``.

        Raises:
            InvalidInputError: the number of tasks has changed.
        """
        if self._held is None:
            self._held = self.start(tasks)
        if len(self._held) != len(tasks):
            raise InvalidInputError(
                f"`tasks` must be {len(self._held)} as before, got {len(tasks)}. Call reset() when the number of tasks "
                "changes."
            )
        return self._held

    def descend(self, gradient: Vector, losses: Vector, tasks: Sequence[str], present: Mask) -> None:
        """One step of Adam against the gradient ``[m]`` by the weights, which were made at ``losses``."""
        slope = self.pulled_back(gradient, losses, tasks, present)
        self._held = self._adam.step(self.parameters_for(tasks), slope, self.free(tasks, present))

    def reset(self) -> None:
        """Start again."""
        self._held = None
        self._adam.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The parameters and Adam's moments."""
        held = None if self._held is None else torch.from_numpy(self._held.copy())
        return {"parameters": held, "adam": self._adam.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._held = None if state["parameters"] is None else on_host(state["parameters"]).copy()
        self._adam.load_state_dict(state["adam"])


class SoftmaxWeights(WeightModel):
    r"""Weights in the simplex, :math:`\lambda = \mathrm{softmax}(\beta a / f)` with the losses :math:`f` as constants.

    Args:
        beta: :math:`\beta > 0`.
        lr: learning rate of the Adam that trains :math:`a`, which starts at 0.
        bound: a lower bound of the losses, one number or one per task; :math:`f` is what lies above it.

    Raises:
        InvalidParameterError: ``beta`` or ``lr`` is not positive, or ``bound`` is not finite.
        InvalidInputError: when used on a loss that is not above its bound.

    References:
        Chen et al., *Feed m Birds with One Scone*, appendix C.
    """

    def __init__(self, *, beta: float = 1.0, lr: float = 1e-4, bound: float | Sequence[float] | Tensor = 0.0) -> None:
        super().__init__(lr=lr)
        self.beta = checks.positive("beta", beta)
        self.bound = one_per_task("bound", bound)

    @property
    def scale(self) -> Scale:
        """The sum of the weights over ``m``."""
        return Scale("1/m", lambda m: 1.0 / m)

    def start(self, tasks: Sequence[str]) -> Vector:
        """Zeros."""
        return np.zeros(len(tasks))

    def free(self, tasks: Sequence[str], present: Mask) -> Mask:
        """All that are present."""
        return present

    def weights(self, losses: Vector, tasks: Sequence[str], present: Mask) -> Vector:
        """See the class."""
        above(losses, self.bound.numpy(), present, tasks, method=self.owner)
        distance = np.where(present, losses - self.bound.numpy(), 1.0)
        return softmax(self.beta * self.parameters_for(tasks) / distance, present)

    def pulled_back(self, gradient: Vector, losses: Vector, tasks: Sequence[str], present: Mask) -> Vector:
        """Through the softmax."""
        distance = np.where(present, losses - self.bound.numpy(), 1.0)
        weights = softmax(self.beta * self.parameters_for(tasks) / distance, present)
        known = np.where(present, gradient, 0.0)
        # The losses count as constants, as in the paper, though they change with the parameters.
        slope: Vector = self.beta / distance * weights * (known - weights @ known)
        return slope


class AuxiliaryWeights(WeightModel):
    r"""Weight 1 for every main task and a trained number :math:`\omega_i` for each auxiliary one.

    .. math:: \sum_{i \in \text{main}} f_i + \sum_{i \in \text{auxiliary}} \omega_i f_i

    Args:
        auxiliary: names of the auxiliary tasks, or their starting values by name.
        start: starting value where only names are given.
        minimum: the weights are kept at least at this; ``None`` (the paper's) lets them take any sign.
        lr: learning rate of the Adam that trains them.

    Raises:
        InvalidInputError: ``auxiliary`` is empty.
        InvalidParameterError: ``lr`` is not positive, or another number is not finite.
        UnknownNameError: when used with a problem that has no such task.

    References:
        Chen et al., *Feed m Birds with One Scone*, equation 14.
    """

    def __init__(
        self,
        auxiliary: Sequence[str] | Mapping[str, float],
        *,
        start: float = 1.0,
        minimum: float | None = None,
        lr: float = 1e-4,
    ) -> None:
        super().__init__(lr=lr)
        names = (auxiliary,) if isinstance(auxiliary, str) else tuple(auxiliary)
        if not names:
            raise InvalidInputError("`auxiliary` must name at least one task, got none.")
        values = auxiliary if isinstance(auxiliary, Mapping) else dict.fromkeys(names, start)
        self.auxiliary = {name: checks.finite("start", values[name]) for name in names}
        self.minimum = None if minimum is None else checks.finite("minimum", minimum)

    @property
    def scale(self) -> Scale:
        """The sum of the weights over ``m``, where all start at 1."""
        return Scale("1", lambda m: 1.0)

    def start(self, tasks: Sequence[str]) -> Vector:
        """The starting values; 1 for a main task."""
        for name in self.auxiliary:
            if name not in tasks:
                raise UnknownNameError("task", name, tasks)
        return np.array([self.auxiliary.get(name, 1.0) for name in tasks])

    def free(self, tasks: Sequence[str], present: Mask) -> Mask:
        """The auxiliary ones that are present."""
        chosen: Mask = np.array([name in self.auxiliary for name in tasks]) & present
        return chosen

    def weights(self, losses: Vector, tasks: Sequence[str], present: Mask) -> Vector:
        """See the class."""
        return np.where(present, self.parameters_for(tasks), 0.0)

    def pulled_back(self, gradient: Vector, losses: Vector, tasks: Sequence[str], present: Mask) -> Vector:
        """The gradient itself."""
        return gradient

    def descend(self, gradient: Vector, losses: Vector, tasks: Sequence[str], present: Mask) -> None:
        """One step of Adam, and back to the minimum."""
        super().descend(gradient, losses, tasks, present)
        if self.minimum is not None and self._held is not None:
            # Of the absent tasks, too: the weight that one began with may lie below the minimum.
            free = self.free(tasks, np.ones_like(present))
            self._held = np.where(free, np.maximum(self._held, self.minimum), self._held)
