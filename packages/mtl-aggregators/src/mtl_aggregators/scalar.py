"""Methods that are one line on the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_method import LossMethod, positive
from mtl_aggregators.bases.parameters import weight_vector
from mtl_core import InvalidInputError, checks

__all__ = ["GLS", "LS", "RLW", "SI"]

_ONE = Scale("1", lambda m: 1.0)
_MEAN = Scale("1/m", lambda m: 1.0 / m)


def _facts(reference: str, scale: Scale, *, paper_scale: Scale | None = None, homogeneity: float = 1.0) -> Facts:
    return Facts(
        needs="losses",
        homogeneity=homogeneity,
        scale=scale,
        paper_scale=scale if paper_scale is None else paper_scale,
        paper_heads="unit" if reference == "baseline" and homogeneity == 1.0 else "weighted",
        laws=frozenset(),
        reference=reference,
    )


class LS(LossMethod):
    r"""Linear scalarisation: the sum or mean of the losses, equal or with fixed weights.

    .. math:: S(L) = \sum_i \lambda_i L_i \quad\text{or}\quad \frac1m \sum_i \lambda_i L_i

    Args:
        weights: fixed task weights :math:`\lambda` ``[m]``, non-negative and not all zero; ``None`` for one each.
        reduction: ``"sum"`` or ``"mean"``. The mean divides by the number of tasks in the batch.

    Raises:
        InvalidParameterError: a weight is negative or not finite, or all are zero.
        InvalidInputError: when called on another number of losses than there are weights.

    Example:
        >>> import torch
        >>> float(LS(weights=[1.0, 0.5])(torch.tensor([2.0, 4.0])))
        4.0
    """

    def __init__(
        self, *, weights: Sequence[float] | Tensor | None = None, reduction: Literal["sum", "mean"] = "sum"
    ) -> None:
        super().__init__()
        self.reduction = checks.one_of("reduction", reduction, ("sum", "mean"))
        self.task_weights = None if weights is None else weight_vector("weights", weights)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return _facts("baseline", _ONE if self.reduction == "sum" else _MEAN, paper_scale=_ONE)

    @property
    def has_unit_weights(self) -> bool:
        """Whether the weights are 1 each, so that a step need not read them."""
        return self.task_weights is None and self.reduction == "sum"

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        if self.task_weights is not None:
            if self.task_weights.shape != losses.shape:
                raise InvalidInputError(
                    f"`losses` must hold one loss per weight, {len(self.task_weights)}, got {len(losses)}."
                )
            losses = losses * self.task_weights.to(losses)
        # Not a product with 0, which would leave NaN where an absent task's loss is NaN.
        total = torch.where(present, losses, 0.0).sum()
        return total if self.reduction == "sum" else total / present.sum()


class SI(LossMethod):
    r"""Scale-invariant scalarisation: the sum of the logarithms of the losses.

    .. math:: S(L) = \sum_i \log L_i

    The update does not change when a loss is multiplied by a constant.

    Args:
        tasks: the tasks' names, for messages.

    Raises:
        InvalidInputError: when called on a loss that is not positive.

    Example:
        >>> import torch
        >>> losses = torch.tensor([2.0, 4.0], requires_grad=True)
        >>> torch.autograd.grad(SI()(losses), losses)[0]
        tensor([0.5000, 0.2500])
    """

    def __init__(self, *, tasks: Sequence[str] | None = None) -> None:
        super().__init__(tasks=tasks)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return _facts("baseline", _ONE, homogeneity=0.0)

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        positive(losses, present, self.tasks, method="SI")
        # log 1 = 0: an absent task adds nothing and has derivative 0.
        return torch.where(present, losses, 1.0).log().sum()


class GLS(LossMethod):
    r"""Geometric loss strategy: the geometric mean of the losses.

    .. math:: S(L) = \Bigl(\prod_i L_i\Bigr)^{1/m} = \exp\Bigl(\frac1m \sum_i \log L_i\Bigr)

    Args:
        tasks: the tasks' names, for messages.

    Raises:
        InvalidInputError: when called on a loss that is not positive.

    Note:
        Computed by logarithms, since the product of many losses leaves the range of its dtype. With absent tasks, the
        mean is over those present.

    References:
        Chennupati et al., *MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
        Learning*, CVPR Workshops 2019.

    Example:
        >>> import torch
        >>> round(float(GLS()(torch.tensor([2.0, 8.0]))), 4)
        4.0
    """

    def __init__(self, *, tasks: Sequence[str] | None = None) -> None:
        super().__init__(tasks=tasks)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return _facts("Chennupati et al., CVPRW 2019", _MEAN)

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        positive(losses, present, self.tasks, method="GLS")
        return (torch.where(present, losses, 1.0).log().sum() / present.sum()).exp()


class RLW(LossMethod):
    r"""Random loss weighting: new weights in the simplex at every step.

    .. math:: S(L) = \sum_i \lambda_i L_i, \qquad \lambda = \mathrm{softmax}(x), \; x_i \sim N(0, 1)
        \quad\text{or}\quad \lambda \sim \mathrm{Dirichlet}(1, \dots, 1)

    Args:
        distribution: ``"normal"`` or ``"dirichlet"``.
        generator: source of the draws, on the CPU; ``None`` makes one with torch's default seed. Its state is part of
            ``state_dict()``.

    Raises:
        InvalidParameterError: ``distribution`` is neither.

    Note:
        One number per task is drawn whether it is present or not; the weights of those present sum to 1.

    References:
        Lin et al., *Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning*, TMLR 2022.

    Example:
        >>> import torch
        >>> losses = torch.ones(3, requires_grad=True)
        >>> round(float(torch.autograd.grad(RLW()(losses), losses)[0].sum()), 4)
        1.0
    """

    def __init__(
        self, *, distribution: Literal["normal", "dirichlet"] = "normal", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.distribution = checks.one_of("distribution", distribution, ("normal", "dirichlet"))
        self.generator = checks.generator("generator", generator)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return _facts("Lin et al., TMLR 2022", _MEAN)

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        draws = torch.empty(len(losses), dtype=torch.float64, device="cpu")
        if self.distribution == "normal":
            # Drawn on the CPU: the same weights for the same seed on every device.
            logits = draws.normal_(generator=self.generator).to(losses.device)
        else:  # independent exponentials divided by their sum
            logits = draws.exponential_(generator=self.generator).log().to(losses.device)
        weights = logits.masked_fill(~present, float("-inf")).softmax(dim=0)
        return (losses * weights.to(losses)).sum()

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.generator.set_state(state["generator"].cpu())
