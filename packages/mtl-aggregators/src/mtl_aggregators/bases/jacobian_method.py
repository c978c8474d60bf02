"""The bases of methods that need the gradients themselves, not only their Gramian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from torch import Tensor, optim

from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.loss_checks import check_losses_beside
from mtl_aggregators.bases.loss_method import positive
from mtl_core import InvalidInputError, Problem, StepOptions, StepReport, TaskGradients, checks
from mtl_core.extension import SavedState, begin, collect_batch, finish, full_precision, guarded

__all__ = ["JacobianMethod", "LossAwareMethod", "positive_losses"]


class JacobianMethod(SavedState, ABC):
    """A method from a Jacobian ``[m, d]`` to an update ``[d]``; a subclass implements ``combine`` and ``facts``."""

    has_memory = False
    """Whether the result depends on earlier steps."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""

    @abstractmethod
    def combine(self, jacobian: Tensor) -> Tensor:
        """The update ``[d]`` of a checked, detached Jacobian ``[m, d]``, in its dtype."""

    @full_precision
    def forward(self, gradients: Tensor | TaskGradients) -> Tensor:
        """The update.

        Args:
            gradients: a Jacobian ``[m, d]`` of a real floating dtype, or ``TaskGradients``.

        Returns:
            ``[d]`` in the gradients' dtype.

        Raises:
            InvalidJacobianError: the Jacobian has the wrong rank or dtype, or is not finite.
            InvalidInputError: the number of tasks or columns does not fit what the method was made for or remembers.
        """
        if isinstance(gradients, TaskGradients):
            return self.combine(gradients.whole_matrix.detach())
        return self.combine(checks.finite_jacobian(gradients))


class LossAwareMethod(SavedState, ABC):
    """A method from a Jacobian ``[m, d]`` and the losses ``[m]`` to an update; it owns its step to get at both."""

    has_memory = False
    """Whether the result depends on earlier steps."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""

    @abstractmethod
    def combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        """The update ``[d]`` of a checked, detached Jacobian ``[m, d]``, in its dtype."""

    @full_precision
    def forward(self, gradients: Tensor | TaskGradients, *, losses: Tensor | None = None) -> Tensor:
        """The update.

        Args:
            gradients: a Jacobian ``[m, d]`` of a real floating dtype, or ``TaskGradients``, which bring their losses.
            losses: ``[m]``, where the method, as configured, needs them.

        Returns:
            ``[d]`` in the gradients' dtype.

        Raises:
            InvalidJacobianError: the Jacobian has the wrong rank or dtype, or is not finite.
            InvalidInputError: losses are needed and not there, or not positive, or the number of tasks changed.
            NonFiniteLossError: the loss of a task with a gradient is NaN or infinite.
        """
        if isinstance(gradients, TaskGradients):
            return self.combine(gradients.whole_matrix.detach(), gradients.losses.detach())
        matrix = checks.finite_jacobian(gradients)
        return self.combine(matrix, None if losses is None else check_losses_beside(losses, matrix).detach())

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step on one batch, or on micro-batches of it."""
        options = StepOptions() if options is None else options
        with guarded(problem, optimizer, self, options):
            notes = begin(problem, optimizer, options)
            gradients = collect_batch(problem, batch, options=options)
            # `finish` takes aggregators, which see the Jacobian only; this one has been told the losses.
            given = _WithLosses(self, gradients.losses.detach())
            report = finish(problem, batch, optimizer, given, gradients, options=options)
        return replace(report, events=(*notes, *report.events))


class _WithLosses:
    """A method with the losses of one step: an aggregator."""

    def __init__(self, method: LossAwareMethod, losses: Tensor) -> None:
        self._method, self._losses = method, losses
        self.has_memory = method.has_memory

    def __call__(self, jacobian: Tensor) -> Tensor:
        return self._method.combine(jacobian, self._losses)


def positive_losses(method: str, losses: Tensor | None, jacobian: Tensor) -> Tensor:
    """The losses ``[m]`` in the Jacobian's dtype and on its device; NaN for an absent task becomes 1.

    Raises:
        InvalidInputError: they are not given, not one per task, or not positive; then the tasks are named.
    """
    if losses is None:
        raise InvalidInputError(
            f"{method} needs `losses`, got none. Call method(jacobian, losses=losses), or use mtl_core.step."
        )
    known = losses.to(jacobian)
    if known.shape != jacobian.shape[:1]:
        raise InvalidInputError(f"`losses` must hold one loss per task, {len(jacobian)}, got {tuple(losses.shape)}.")
    if bool((known <= 0.0).any()):
        positive(losses, ~losses.isnan(), None, method=method)
    # An absent task has a row of zeros, so that any positive number will do to divide it by.
    return known.nan_to_num(nan=1.0)
