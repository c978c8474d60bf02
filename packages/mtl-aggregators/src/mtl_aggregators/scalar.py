"""Methods that are one line on the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mtl_aggregators.facts import Facts, Scale
from mtl_aggregators.parameters import weight_vector
from mtl_core import checks
from mtl_core.errors import InvalidInputError

__all__ = ["LS"]


class LS(nn.Module):
    r"""Linear scalarisation: the sum or mean of the losses, equal or with fixed weights.

    .. math:: S(L) = \sum_i \lambda_i L_i \quad\text{or}\quad \frac1m \sum_i \lambda_i L_i

    Args:
        weights: fixed task weights :math:`\lambda` ``[m]``, non-negative and not all zero; ``None`` for one each.
        reduction: ``"sum"`` or ``"mean"``. The mean divides by the number of tasks in the batch.

    Raises:
        InvalidParameterError: a weight is negative or not finite, or all are zero.

    Example:
        >>> import torch
        >>> float(LS(weights=[1.0, 0.5])(torch.tensor([2.0, 4.0])))
        4.0
    """

    needs: Literal["losses"] = "losses"
    takes_present = True

    def __init__(
        self, *, weights: Sequence[float] | Tensor | None = None, reduction: Literal["sum", "mean"] = "sum"
    ) -> None:
        super().__init__()
        self.reduction = checks.one_of("reduction", reduction, ("sum", "mean"))
        self.task_weights = None if weights is None else weight_vector("weights", weights)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        if self.reduction == "sum":
            scale = Scale("1", lambda m: 1.0)
        else:
            scale = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="losses",
            homogeneity=1.0,
            scale=scale,
            paper_scale=Scale("1", lambda m: 1.0),
            paper_heads="unit",
            laws=frozenset(),
            reference="baseline",
        )

    def forward(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        """The scalar to differentiate.

        Args:
            losses: ``[m]``.
            present: boolean ``[m]``, the tasks that have a loss in this batch; ``None`` for all.

        Returns:
            a scalar.

        Raises:
            InvalidInputError: ``losses`` is not one-dimensional, or has not one loss per fixed weight.
        """
        if losses.ndim != 1 or not len(losses):
            raise InvalidInputError(f"`losses` must have shape [m] with m >= 1, got {tuple(losses.shape)}.")
        if self.task_weights is not None:
            if self.task_weights.shape != losses.shape:
                raise InvalidInputError(
                    f"`losses` must hold one loss per weight, {len(self.task_weights)}, got {len(losses)}."
                )
            losses = losses * self.task_weights.to(losses)
        if present is not None:
            losses = losses[present]
        return losses.sum() if self.reduction == "sum" else losses.mean()
