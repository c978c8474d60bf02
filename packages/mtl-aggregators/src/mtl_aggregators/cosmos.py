"""COSMOS: a weighted sum that rewards losses in the proportions of a preference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.loss_method import LossMethod
from mtl_aggregators.bases.parameters import match_tasks, weight_vector
from mtl_core import checks

__all__ = ["COSMOS"]


class COSMOS(LossMethod):
    r"""The objective of COSMOS: linear scalarisation with a cosine penalty.

    .. math:: S(L) = \langle r, L\rangle - \lambda \frac{\langle r, L\rangle}{\|r\| \|L\|}

    Args:
        penalty: :math:`\lambda \ge 0`; 0 is linear scalarisation.
        weights: the preference :math:`r` ``[m]``, taken as it is; ``None`` for :math:`1/m` each.

    Raises:
        InvalidParameterError: ``penalty`` is negative, or a weight is.

    Note:
        The paper also feeds the preference to the network and draws it anew for each batch; that is the network's and
        the training loop's part. The cosine is over all tasks, so that none may be absent.

    References:
        Ruchte and Grabocka, *Scalable Pareto Front Approximation for Deep Multi-Objective Learning*, ICDM 2021,
        equation 6.

    Example:
        >>> import torch
        >>> float(COSMOS(penalty=1.0, weights=[1.0, 0.0])(torch.tensor([3.0, 4.0])))
        2.4000
    """

    takes_present = False

    def __init__(self, *, penalty: float = 1.0, weights: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.penalty = checks.non_negative("penalty", penalty)
        self.task_weights = None if weights is None else weight_vector("weights", weights)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        mean = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="losses",
            homogeneity=None if self.penalty else 1.0,
            scale=mean,
            paper_scale=mean,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Ruchte and Grabocka, ICDM 2021",
        )

    def scalar(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar; see the class."""
        weights = torch.full_like(losses, 1.0 / len(losses))
        if self.task_weights is not None:
            match_tasks("weights", self.task_weights, len(losses))
            weights = self.task_weights.to(losses)
        return weights @ losses - self.penalty * torch.cosine_similarity(weights, losses, dim=0)
