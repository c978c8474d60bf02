"""The base of every method that works on the Gramian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import on_host
from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.loss_checks import check_losses_beside
from mtl_aggregators.solvers import Solution
from mtl_aggregators.solvers.device import solves_on_device
from mtl_aggregators.solvers.device.rows import Backend
from mtl_aggregators.solvers.device.rows import as_known as device_as_known
from mtl_aggregators.solvers.rounding import as_known
from mtl_aggregators.solvers.solution import Vector
from mtl_aggregators.solvers.threads import FEW, one_thread
from mtl_core import InvalidJacobianError, InvalidParameterError, TaskGradients, checks
from mtl_core.extension import SavedState, full_precision, gramian_of, weighted_sum

__all__ = ["GramianMethod", "RegularisedSolve", "update_out_of_range"]


@dataclass(frozen=True)
class RegularisedSolve:
    """The weights' problem had no solution as it stood, and was solved with a ridge.

    Attributes:
        method: the method's class.
        residual: of the regularised problem.
        iterations: the solver's.
    """

    method: str
    residual: float
    iterations: int
    kind: str = "regularised_solve"

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {
            "kind": self.kind,
            "method": self.method,
            "residual": self.residual,
            "iterations": self.iterations,
        }


class GramianMethod(SavedState, ABC):
    r"""A method whose update is :math:`J^\top w` with weights :math:`w` computed from :math:`G = J J^\top`.

    A subclass implements ``solve`` and ``facts``. ``weights(gramian)`` is the one path to the weights; calling the
    method on gradients forms their Gramian, asks for the weights and combines. A subclass that can also compute them in
    torch, without waiting for the Gramian's device, implements ``solve_on_device`` and sets ``backend``.

    Attributes:
        backend: ``"host"``: weights are computed in float64 on the CPU. ``"device"``: where the Gramian lies, by a
            fixed number of operations that neither wait for the device nor report how it went. ``"auto"``: the latter
            for two tasks on an accelerator where that is a closed form, and the host after one small copy otherwise.
        last_solution: how the last weights were found; ``None`` before the first, and for methods without a solver.
        takes_losses: whether ``weights`` needs the tasks' losses.
    """

    has_memory = False
    """Whether the result depends on earlier steps."""

    takes_losses = False
    """Whether the weights depend on the losses too."""

    remembers_lengths = False
    """Whether what is remembered from step to step has the gradients' unit, and not only their weights or angles."""

    def __init__(self, *, backend: Backend = "host") -> None:
        super().__init__()
        self.backend: Backend = checks.one_of("backend", backend, ("auto", "host", "device"))
        if type(self).solve_on_device is GramianMethod.solve_on_device:
            self.on_host_only()
        self.last_solution: Solution | None = None
        self._events: list[RegularisedSolve] = []

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""

    @abstractmethod
    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``.

        Args:
            gramian: ``[m, m]``, float64, finite, not to be written to.
            losses: ``[m]``, for methods with ``takes_losses``.
        """

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]`` of a float64 Gramian, on its device and without waiting for it.

        Raises:
            InvalidParameterError: the method, as configured, has no such solver.
        """
        raise self._no_device_solver()

    def on_host_only(self) -> None:
        """Compute weights on the host whatever ``backend`` is, as a method, as configured, has no other solver.

        Raises:
            InvalidParameterError: ``backend`` asks for the device.
        """
        if self.backend == "device":
            raise self._no_device_solver()
        self.backend = "host"

    def _no_device_solver(self) -> InvalidParameterError:
        return InvalidParameterError(
            f"`backend` must be 'host' or 'auto' for {type(self).__name__} as configured, got {self.backend!r}: it has "
            "no solver for the device."
        )

    @full_precision
    def weights(self, gramian: Tensor, *, losses: Tensor | None = None) -> Tensor:
        """Weights of the tasks.

        Args:
            gramian: ``[m, m]`` of a real floating dtype, finite; a zero row and column is a task that is absent or
                has converged. One of less than double precision is taken as known to its dtype's rounding.
            losses: ``[m]``; used by methods with ``takes_losses`` only.

        Returns:
            float64 ``[m]`` on the Gramian's device. With the device backend a Gramian that is not finite is not
            refused, for that would mean waiting for it: its weights are NaN.

        Raises:
            InvalidJacobianError: ``gramian`` is not a finite symmetric matrix, or none of inner products.
            InvalidInputError: ``losses`` is no vector with one entry per task.
            NonFiniteLossError: the loss of a task with a gradient is NaN or infinite.
            SolverError: the weights' problem was not solved to its tolerance.
        """
        if not checks.is_gramian(gramian):
            checks.gramian(gramian)  # says what is wrong
        if self._on_device(gramian):
            self.last_solution = None
            wide = device_as_known(gramian.detach())
            # 0 times NaN or infinity is NaN.
            return self.solve_on_device(wide) + 0.0 * wide.sum()
        array = on_host(gramian)
        # Whatever is not finite makes the sum of squares so. A sum may also overflow: then the entries are looked at.
        if not math.isfinite(np.vdot(array, array)):
            checks.gramian(gramian)
        if array.tobytes() != array.T.tobytes():
            # A product in a narrow dtype need not round both halves alike, and on some processors does not. The solvers
            # read one half and check the other: an ulp of float32 is 50 times what they are exact to.
            checks.gramian(gramian)
            array = 0.5 * (array + array.T)
        elif not checks.is_possible(array, gramian.dtype):
            checks.gramian(gramian)
        if gramian.dtype != torch.float64:
            # Rounding has made it indefinite in the scale of the solvers' tolerances.
            array = as_known(array, gramian.dtype)
        known: Vector | None = None
        if losses is not None:
            known = on_host(check_losses_beside(losses, gramian))
        if len(array) <= FEW:
            found = self.solve(array, known)
        else:
            with one_thread:
                found = self.solve(array, known)
        return torch.from_numpy(found) if gramian.is_cpu else torch.from_numpy(found).to(gramian.device)

    @full_precision
    def forward(self, gradients: Tensor | TaskGradients) -> Tensor:
        """The update.

        Args:
            gradients: a Jacobian ``[m, d]`` of a real floating dtype, or ``TaskGradients``.

        Returns:
            ``[d]`` in the gradients' dtype.

        Raises:
            InvalidJacobianError: the Jacobian has the wrong rank or dtype, is not finite, or is so large or small that
                squares leave the range of float64 where the method has no scale to bring it back by, or in one row
                beside others.
            SolverError: the weights' problem was not solved to its tolerance.
        """
        if isinstance(gradients, TaskGradients):
            # `host_gramian` is checked and remembered, and `combine` then knows from it where terms cancel.
            if self._on_device(gradients.gramian):
                return gradients.combine(self._ask(gradients.gramian, gradients.losses))
            return gradients.combine(self._ask(gradients.host_gramian, gradients.losses))
        if not checks.is_jacobian(gradients):
            checks.jacobian(gradients)  # says what is wrong
        jacobian = gradients.detach()
        gramian = gramian_of(jacobian)
        if self._on_device(gramian):
            return weighted_sum(jacobian, self._ask(gramian, None))
        if not gramian.is_cpu:
            gramian = gramian.cpu()
        # The squares of narrower numbers are all within the range of float64.
        if jacobian.dtype is torch.float64 and not checks.in_range(gramian):
            return update_out_of_range(self, gradients, self._ask, remembers_lengths=self.remembers_lengths)
        checks.refuse_lost(jacobian, gramian)
        try:
            weights = self._ask(gramian, None)
        except InvalidJacobianError:
            # What is not finite in a row is not finite in its square, so that the rows are read only to be named.
            checks.jacobian(gradients)
            raise
        return weighted_sum(jacobian, weights, gramian)

    @property
    def closed_on_device(self) -> bool:
        """Whether ``solve_on_device``, as configured, has a closed form for two tasks."""
        return False

    def _on_device(self, gramian: Tensor) -> bool:
        return self.backend != "host" and solves_on_device(self.backend, gramian, closed=self.closed_on_device)

    def _ask(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        # Only then, since an absent task's loss is NaN, and checking it is work that most methods have no use for.
        if self.takes_losses:
            return self.weights(gramian, losses=losses)
        return self.weights(gramian)

    def pop_events(self) -> tuple[RegularisedSolve, ...]:
        """What happened since the last call, for the step's report."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def record(self, solution: Solution) -> None:
        """Keep a solution as ``last_solution``, and tell if it was regularised."""
        # Module's own assignment looks for parameters first and takes ten times as long.
        self.__dict__["last_solution"] = solution
        if solution.regularised:
            self._events.append(RegularisedSolve(type(self).__name__, solution.residual, solution.iterations))
            del self._events[:-MAX_EVENTS]


def update_out_of_range(
    method: Any, jacobian: Tensor, ask: Callable[[Tensor, None], Tensor], *, remembers_lengths: bool
) -> Tensor:
    """The update of a Jacobian ``[m, d]`` whose squares underflow or overflow, computed at another scale.

    Args:
        method: whose ``facts`` say how its update scales.
        jacobian: as it was given.
        ask: from a Gramian to weights.
        remembers_lengths: whether the method's memory is of the scale at which it is called.

    Raises:
        InvalidJacobianError: the Jacobian is not finite, or the method is not homogeneous.
    """
    known = checks.jacobian(jacobian).detach()
    scaled, exponent = checks.into_range(known)
    degree = method.facts.homogeneity
    # Of degree 1 the weights have no unit, so that weights of other steps go together with these.
    if exponent and (degree is None or remembers_lengths or (method.has_memory and degree != 1.0)):
        raise InvalidJacobianError(
            f"`jacobian` must have norms between 1e-100 and 1e100 for {type(method).__name__} as configured, got a "
            f"largest entry of {float(known.abs().max()):.6g}, whose square float64 does not hold. Scale the losses."
        )
    gramian = gramian_of(scaled).cpu()
    checks.refuse_lost(scaled, gramian)
    return checks.times_power(weighted_sum(scaled, ask(gramian, None), gramian), exponent * (degree or 0.0))


MAX_EVENTS = 100
"""Events kept for a loop that never asks for them."""
