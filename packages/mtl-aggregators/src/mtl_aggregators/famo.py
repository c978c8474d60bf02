"""FAMO: every task's loss falls at the same rate, for the price of one more forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import Mask, on_host
from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_checks import check_past_losses
from mtl_aggregators.bases.loss_method import TrainedLossMethod, above, softmax
from mtl_aggregators.bases.parameters import one_per_task
from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["FAMO"]


class FAMO(TrainedLossMethod):
    r"""Fast adaptive multitask optimisation.

    .. math::
        S(L) = c \sum_i z_i \log(L_i - b_i + \varepsilon), \qquad z = \mathrm{softmax}(\xi), \qquad
        \tfrac1c = \sum_i \frac{z_i}{L_i - b_i + \varepsilon}

    with :math:`c` constant, so that the weights sum to 1. After the update the losses of the same batch are computed
    once more, and :math:`\xi` takes a step of Adam with the gradient :math:`(\partial z/\partial\xi)^\top\delta`,
    :math:`\delta_i = \log(L_i^{\text{before}} - b_i + \varepsilon) - \log(L_i^{\text{after}} - b_i + \varepsilon)`:
    a task that improved less than the others gains weight.

    Args:
        bound: a lower bound :math:`b` of the losses, one number or one per task.
        variant: which decay :math:`\gamma` to take where none is given: ``"paper"``, 1e-3, or ``"released"``, 1e-5.
        gamma: weight decay of :math:`\xi`, pulling towards equal :math:`z`; ``None`` for that of ``variant``.
        lr: Adam's learning rate.
        eps: :math:`\varepsilon`.
        tasks: the tasks' names, for messages.

    Raises:
        InvalidParameterError: ``lr`` or ``eps`` is not positive, ``gamma`` is negative, or ``variant`` is neither.
        InvalidInputError: when called on a loss that is not above its bound.

    Note:
        Adam's moments are in ``state_dict()``; the released code keeps them outside of it. Tasks that are absent from
        a batch rest, and the softmax is over the others. The degree of
        homogeneity is 1 up to :math:`\varepsilon`. The second forward pass leaves its mark on batch-norm
        statistics, as in the released code.

    References:
        Liu et al., *FAMO: Fast Adaptive Multitask Optimization*, NeurIPS 2023, algorithm 1.

    Example:
        >>> import torch
        >>> losses = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> torch.autograd.grad(FAMO()(losses), losses)[0]
        tensor([0.7500, 0.2500])
    """

    def __init__(
        self,
        *,
        bound: float | Sequence[float] | Tensor = 0.0,
        variant: Literal["paper", "released"] = "paper",
        gamma: float | None = None,
        lr: float = 0.025,
        eps: float = 1e-8,
        tasks: Sequence[str] | None = None,
    ) -> None:
        default = 1e-3 if checks.one_of("variant", variant, ("paper", "released")) == "paper" else 1e-5
        chosen = default if gamma is None else checks.non_negative("gamma", gamma)
        super().__init__(lr=lr, decay=chosen, tasks=tasks)
        self.variant = variant
        self.gamma = chosen
        self.bound = one_per_task("bound", bound)
        self.eps = checks.positive("eps", eps)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        mean = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="losses",
            homogeneity=None if bool(self.bound.any()) else 1.0,
            scale=mean,
            paper_scale=mean,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Liu et al., NeurIPS 2023",
        )

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        bound = self.bound.to(losses)
        above(losses, bound, present, self.tasks, method="FAMO")
        z = torch.from_numpy(self._shares(present.cpu().numpy())).to(losses)
        distance = torch.where(present, losses - bound, 1.0) + self.eps
        # A constant by which the losses' weights c z / (L - b) add up to 1, as in the paper.
        c = 1.0 / (z / distance.detach()).sum()
        return c * (z * distance.log()).sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Train the logits on what the update did to the losses ``[m]``; NaN for an absent task.

        Raises:
            InvalidInputError: a loss after the update is not above its bound.
        """
        check_past_losses(before)
        old, new = on_host(before), on_host(after())
        present = ~np.isnan(old)
        above(new, self.bound.numpy(), present, self.tasks, method="FAMO")
        # The distances of `scalar`, its eps included: the logarithms are of what the step has lowered.
        bound = self.bound.numpy() - self.eps
        then, now = np.where(present, old - bound, 1.0), np.where(present, new - bound, 1.0)
        delta = np.log(then / now)
        z = self._shares(present)
        # The gradient of z @ delta through z = softmax of the trained numbers.
        self.descend(z * (delta - z @ delta), present)

    def _shares(self, present: Mask) -> Vector:
        """The softmax over the tasks present, zero for the others."""
        return softmax(self.trained_for(present), present)
