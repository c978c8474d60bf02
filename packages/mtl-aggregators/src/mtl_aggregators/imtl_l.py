"""IMTL-L: losses brought to one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import on_host
from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_checks import check_past_losses
from mtl_aggregators.bases.loss_method import TrainedLossMethod

__all__ = ["IMTLL"]


class IMTLL(TrainedLossMethod):
    r"""The loss half of impartial multi-task learning: a trained scale per loss.

    .. math:: S(L) = \sum_i \left(e^{s_i} L_i - s_i\right)

    At the optimum of :math:`s` every scaled loss :math:`e^{s_i} L_i` is 1.

    Args:
        lr: learning rate of the method's own Adam on :math:`s`.
        start: :math:`s` at the start, one number or one per task.

    Raises:
        InvalidParameterError: ``lr`` is not positive, or ``start`` is not finite.

    Note:
        Released implementations hand :math:`s` to the optimiser of the network; here the method trains it after each
        step, on the losses that the step saw. The :math:`s_i` of an absent task rests. ``IMTL`` is this followed by
        ``IMTLG``.

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, section 3.2.

    Example:
        >>> import torch
        >>> float(IMTLL()(torch.tensor([2.0, 4.0])))
        6.0
    """

    def __init__(self, *, lr: float = 0.025, start: float | Sequence[float] | Tensor = 0.0) -> None:
        super().__init__(lr=lr, start=start)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        one = Scale("1", lambda m: 1.0)
        factor = float(self.start.exp().mean())
        own = one if factor == 1.0 else Scale(f"{factor:.3g}", lambda m: factor)
        return Facts(
            needs="losses",
            homogeneity=None,
            scale=own,
            paper_scale=one,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Liu et al., ICLR 2021",
        )

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        s = torch.from_numpy(self.trained_for(losses))
        return (s.exp().to(losses) * losses - s.to(losses))[present].sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Train the scales on the losses ``[m]`` of the step, NaN for an absent task."""
        check_past_losses(before)
        known = on_host(before)
        self.descend(np.exp(self.trained_for(known)) * known - 1.0, ~np.isnan(known))
