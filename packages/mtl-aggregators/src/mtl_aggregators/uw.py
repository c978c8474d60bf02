"""UW: weights from a trained uncertainty per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import on_host
from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_checks import check_past_losses
from mtl_aggregators.bases.loss_method import TrainedLossMethod

__all__ = ["UW"]


class UW(TrainedLossMethod):
    r"""Uncertainty weighting: each loss is divided by a trained variance :math:`e^{s_i}`.

    .. math:: S(L) = \sum_i \tfrac12 \left(e^{-s_i} L_i + s_i\right)

    At the optimum of :math:`s` every weighted loss :math:`e^{-s_i} L_i` is 1.

    Args:
        lr: learning rate of the method's own Adam on :math:`s`.
        start: :math:`s` at the start, one number or one per task; some released code starts at -0.5.

    Raises:
        InvalidParameterError: ``lr`` is not positive, or ``start`` is not finite.

    Note:
        Released implementations hand :math:`s` to the optimiser of the network; here the method trains it after each
        step, on the losses that the step saw. The :math:`s_i` of an absent task rests.

    References:
        Kendall, Gal and Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses*, CVPR 2018, equation 10.

    Example:
        >>> import torch
        >>> float(UW()(torch.tensor([2.0, 4.0])))
        3.0
    """

    def __init__(self, *, lr: float = 0.025, start: float | Sequence[float] | Tensor = 0.0) -> None:
        super().__init__(lr=lr, start=start)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        half = Scale("1/2", lambda m: 0.5)
        factor = float((-self.start).exp().mean()) / 2.0
        own = half if factor == 0.5 else Scale(f"{factor:.3g}", lambda m: factor)
        return Facts(
            needs="losses",
            homogeneity=None,
            scale=own,
            paper_scale=half,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Kendall et al., CVPR 2018",
        )

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        s = torch.from_numpy(self.trained_for(losses))
        terms = 0.5 * ((-s).exp().to(losses) * losses + s.to(losses))
        # Chosen, not multiplied by 0, since an absent task's loss may be NaN.
        return terms[present].sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Train the uncertainties on the losses ``[m]`` of the step, NaN for an absent task."""
        check_past_losses(before)
        known = on_host(before)
        # The derivative of ½ (e^−s L + s) by s.
        self.descend(0.5 * (1.0 - np.exp(-self.trained_for(known)) * known), ~np.isnan(known))
