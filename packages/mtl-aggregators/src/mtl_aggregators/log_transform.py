"""DB-MTL's transform: the logarithm of each loss, before any method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, optim

from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.loss_method import above
from mtl_core import (
    InvalidInputError,
    Method,
    Problem,
    StepOptions,
    StepReport,
    TaskGradients,
    TaskLosses,
    Weighting,
    checks,
    step,
)
from mtl_core.extension import (
    ProblemView,
    TakesAbsentTasks,
    TakesLosses,
    Wrapper,
    check_method,
    guarded,
    is_loss_weighting,
    offers,
)

__all__ = ["LogGramian", "LogLosses", "LogStep", "log_transform"]


def log_transform(method: Any, *, eps: float = 1e-8) -> LogLosses | LogGramian | LogStep:
    r"""The same method on :math:`\log(L_i + \varepsilon)`: tasks weigh alike whatever the unit of their loss.

    .. math:: g_i \leftarrow \frac{g_i}{L_i + \varepsilon}, \qquad L_i \leftarrow \log(L_i + \varepsilon)

    Args:
        method: a loss weighting, a weighting, an aggregator, a whole method such as ``MARIGOLD``, or any callable from
            a Jacobian to an update.
        eps: :math:`\varepsilon`, as released; it must be positive.

    Returns:
        A method of the same kind, ``LogLosses`` or ``LogGramian``; where the gradients themselves are needed or the
        method owns its step, a ``LogStep``, which owns the step.

    Raises:
        InvalidParameterError: ``eps`` is not positive.
        InvalidInputError: ``method`` is nothing that a step can take.

    Note:
        A loss must lie above :math:`-\varepsilon`; others are refused by position. Heads follow ``step``'s setting:
        with ``heads="unit"`` they keep to the losses as they are under ``LogLosses`` and ``LogGramian``, and to their
        logarithms under ``LogStep``.

    References:
        Lin et al., *Dual-Balancing for Multi-Task Learning*, 2023, section 3.1.

    Example:
        >>> import torch
        >>> from mtl_aggregators import LS
        >>> losses = torch.tensor([0.5, 4.0], requires_grad=True)
        >>> torch.autograd.grad(log_transform(LS())(losses), losses)[0]
        tensor([2.0000, 0.2500])
    """
    checks.positive("eps", eps)
    check_method(method)
    if offers(method, Method):
        return LogStep(method, eps)
    if is_loss_weighting(method):
        return LogLosses(method, eps)
    if offers(method, Weighting):
        return LogGramian(method, eps)
    return LogStep(method, eps)


def _takes_losses(method: object) -> bool:
    return offers(method, TakesLosses) and method.takes_losses


class _LogWrapper(Wrapper):
    """A method that sees logarithms.

    Args:
        method: the method.
        eps: what is added to the losses first.
    """

    def __init__(self, method: Any, eps: float) -> None:
        super().__init__(method)
        self.eps = eps

    def after_step(self, before: Tensor, after: Callable[[], Tensor], /) -> None:
        """Show the method what the update did to the logarithms of the losses."""
        # What it learns from must be what it was called on.
        super().after_step((before + self.eps).log(), lambda: (after() + self.eps).log())

    @property
    def facts(self) -> Facts:
        """The method's, without its laws and its degree; the scale is that of losses of 1."""
        found: Facts = replace(self.method.facts, homogeneity=None, laws=frozenset())
        return found


class LogLosses(_LogWrapper):
    """A loss weighting on the logarithms of the losses; made by ``log_transform``."""

    needs: Literal["losses"] = "losses"

    @property
    def takes_present(self) -> bool:
        """Whether tasks may be absent, as for the method."""
        return offers(self.method, TakesAbsentTasks) and self.method.takes_present

    def forward(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        r"""The method's scalar of the logarithms.

        Raises:
            InvalidInputError: a loss is not above :math:`-\varepsilon`.
        """
        above(losses, -self.eps, present, None, method="log_transform")
        if present is None:
            found: Tensor = self.method((losses + self.eps).log())
        else:
            # The logarithm of an absent task's NaN or zero would make its derivative NaN, in spite of a weight of 0.
            found = self.method((torch.where(present, losses, 1.0) + self.eps).log(), present=present)
        return found


class LogGramian(_LogWrapper):
    """A weighting on the gradients of the logarithms of the losses; made by ``log_transform``."""

    takes_losses = True

    def weights(self, gramian: Tensor, *, losses: Tensor) -> Tensor:
        r"""The weights ``[m]`` of the losses as they are.

        Args:
            gramian: ``[m, m]`` of their gradients.
            losses: ``[m]``, NaN for an absent task.

        Raises:
            InvalidInputError: a loss is not above :math:`-\varepsilon`.
        """
        known = losses.detach().to(gramian)
        present = ~known.isnan()
        above(known, -self.eps, present, None, method="log_transform")
        factor = torch.where(present, 1.0 / (known + self.eps), 0.0)
        scaled = gramian * factor * factor.unsqueeze(1)
        if _takes_losses(self.method):
            found = self.method.weights(scaled, losses=(known + self.eps).log())
        else:
            found = self.method.weights(scaled)
        # The weights are for g_i / (L_i + ε); of the gradients as they are, they are smaller by that factor.
        weights: Tensor = found * factor.to(found)
        return weights

    def forward(self, gradients: Any) -> Tensor:
        """The update ``[d]`` of ``TaskGradients``, which know their losses."""
        if not isinstance(gradients, TaskGradients):
            raise InvalidInputError(
                "`gradients` must be TaskGradients, which know their losses, got "
                f"{type(gradients).__name__}. Use collect(), or weights(gramian, losses=losses)."
            )
        update: Tensor = gradients.combine(self.weights(gradients.gramian, losses=gradients.losses))
        return update


def _logarithms(losses: TaskLosses, *, eps: float) -> TaskLosses:
    """The logarithms of a problem's losses."""
    above(losses.values, -eps, None, losses.tasks, method="log_transform")
    found = losses.outputs
    if isinstance(found, Tensor):
        return replace(losses, outputs=_logarithm(found, eps))
    return replace(losses, outputs=tuple(_logarithm(loss, eps) for loss in found))


def _logarithm(loss: Tensor, eps: float) -> Tensor:
    # In half precision the loss that the report has by its exponential was off by more than a percent.
    wide = loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss
    return (wide + eps).log()


class LogStep(_LogWrapper):
    """A whole step on the logarithms of the losses; made by ``log_transform``."""

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step; the report's losses are the problem's own, its weights those of the logarithms."""
        options = StepOptions() if options is None else options
        with guarded(problem, optimizer, self, options):
            view = ProblemView(problem, partial(_logarithms, eps=self.eps))
            report = step(view, batch, optimizer, self.method, **vars(options))
        # Undone rather than evaluated once more.
        return replace(report, losses=report.losses.exp() - self.eps)
