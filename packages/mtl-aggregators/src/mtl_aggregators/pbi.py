"""PBI: along a preferred direction, with a penalty on the distance to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_method import LossMethod
from mtl_aggregators.bases.parameters import match_tasks, one_per_task, weight_vector
from mtl_core import checks

__all__ = ["PBI"]


class PBI(LossMethod):
    r"""Penalty-based boundary intersection.

    .. math::
        S(L) = d_1 + \theta d_2, \qquad d_1 = \langle L - z, \hat w\rangle, \qquad
        d_2 = \|(L - z) - d_1 \hat w\|, \qquad \hat w = w / \|w\|

    Args:
        theta: penalty :math:`\theta \ge 0`.
        weights: the direction :math:`w` ``[m]``; ``None`` for equal entries.
        reference: ideal point :math:`z`, one number or one per task.

    Raises:
        InvalidParameterError: ``theta`` is negative, or a weight is, or ``reference`` is not finite.

    Note:
        On the line itself, where :math:`d_2` has no derivative, the subgradient 0 is taken. A task's weight is negative
        where its loss is further along than the others and :math:`\theta` is large. The distance is over all tasks, so
        that none may be absent.

    References:
        Zhang and Li, *MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition*, IEEE Transactions on
        Evolutionary Computation 2007, section II.C.

    Example:
        >>> import torch
        >>> float(PBI(theta=2.0, weights=[1.0, 0.0])(torch.tensor([3.0, 4.0])))
        11.0
    """

    takes_present = False

    def __init__(
        self,
        *,
        theta: float = 5.0,
        weights: Sequence[float] | Tensor | None = None,
        reference: float | Sequence[float] | Tensor = 0.0,
    ) -> None:
        super().__init__()
        self.theta = checks.non_negative("theta", theta)
        self.task_weights = None if weights is None else weight_vector("weights", weights)
        self.reference = one_per_task("reference", reference)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("m^(−1/2)", lambda m: float(m**-0.5))
        return Facts(
            needs="losses",
            homogeneity=None if bool(self.reference.any()) else 1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Zhang and Li, IEEE TEC 2007",
        )

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        weights = torch.ones_like(losses)
        if self.task_weights is not None:
            match_tasks("weights", self.task_weights, len(losses))
            weights = self.task_weights.to(losses)
        if self.reference.ndim:
            match_tasks("reference", self.reference, len(losses))
        direction = weights / weights.norm()
        shifted = losses - self.reference.to(losses)
        along = shifted @ direction
        across = shifted - along * direction
        # Rounding leaves a direction where there is none, which the penalty would follow.
        on_line = across.detach().norm() <= 16 * torch.finfo(losses.dtype).eps * shifted.detach().norm()
        apart = across.norm().masked_fill(on_line, 0.0)
        total: Tensor = along + self.theta * apart
        return total
