"""CR-MOGM: any weighting, its weights averaged over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.gramian_method import GramianMethod, update_out_of_range
from mtl_aggregators.bases.parameters import same_tasks
from mtl_aggregators.mgda import MGDA
from mtl_core import InvalidInputError, InvalidParameterError, TaskGradients, Weighting, checks
from mtl_core.extension import TakesLosses, Wrapper, gramian_of, offers, weighted_sum

__all__ = ["CRMOGM"]


class CRMOGM(Wrapper):
    r"""Correlation-reduced gradient manipulation: another method's weights by their moving average.

    .. math:: \bar w \leftarrow \alpha \bar w + (1 - \alpha)\, w(G)

    Weights and gradients of one batch are correlated, which biases the update; averaging the weights over batches
    takes most of that away.

    Args:
        weighting: any method with ``weights(gramian)``; ``None`` for ``MGDA()``.
        alpha: how much of the average is kept, in [0, 1). The paper lets it grow towards 1 as the learning rate falls;
            the attribute may be set between steps.
        paper_scale: ``MGDA(paper_scale=True)`` where no weighting is given; one that is given has a scale of its own.

    Raises:
        InvalidInputError: ``weighting`` gives no weights.
        InvalidParameterError: ``alpha`` is not in [0, 1), or ``paper_scale`` is asked of a weighting that is given.

    Note:
        The average starts at the first weights.

    References:
        Zhou et al., *On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond*, NeurIPS 2022,
        algorithm 1.

    Example:
        >>> import torch
        >>> from mtl_aggregators.mgda import MGDA
        >>> method = CRMOGM(MGDA(), alpha=0.5)
        >>> method.weights(torch.eye(2)), method.weights(torch.diag(torch.tensor([1.0, 3.0])))
        (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([0.6250, 0.3750], dtype=torch.float64))
    """

    has_memory = True

    def __init__(self, weighting: Any = None, *, alpha: float = 0.9, paper_scale: bool = False) -> None:
        if weighting is not None and paper_scale:
            raise InvalidParameterError(
                f"`paper_scale` must be set on the weighting, got it beside a {type(weighting).__name__}. "
                "Give CRMOGM(MGDA(paper_scale=True)) or the like."
            )
        found = MGDA(paper_scale=paper_scale) if weighting is None else weighting
        checks.instance("weighting", found)
        if not offers(found, Weighting):
            raise InvalidInputError(
                f"`weighting` must have weights(gramian), got {type(weighting).__name__}. Average the weights of a "
                "weighting such as MGDA()."
            )
        super().__init__(found)
        self.alpha = checks.in_interval("alpha", alpha, 0.0, 1.0, "[)")
        self._average: Tensor | None = None

    @property
    def weighting(self) -> Any:
        """The method whose weights are averaged."""
        return self.method

    @property
    def takes_losses(self) -> bool:
        """Whether the weights depend on the losses too, as the method's do."""
        return offers(self.method, TakesLosses) and self.method.takes_losses

    @property
    def facts(self) -> Facts:
        """The weighting's, without what an average over other gradients does not keep."""
        own: Facts = self.weighting.facts
        return Facts(
            needs=own.needs,
            homogeneity=own.homogeneity,
            scale=own.scale,
            paper_scale=own.paper_scale,
            paper_heads=own.paper_heads,
            # What holds for any mean of such weights. That the update is in conflict with no task does not: old weights
            # are of another step's gradients.
            laws=own.laws & {"simplex", "equal_rows", "orthogonal", "permutation", "homogeneous"},
            reference="Zhou et al., NeurIPS 2022",
            min_tasks=own.min_tasks,
        )

    def weights(self, gramian: Tensor, *, losses: Tensor | None = None) -> Tensor:
        """The averaged weights ``[m]``, float64.

        Raises:
            InvalidInputError: the number of tasks changed.
        """
        if self._average is not None and checks.is_gramian(gramian):
            # Before the weighting is asked: it may remember what it was asked, or draw.
            same_tasks("CRMOGM", len(self._average), len(gramian))
        new = self.weighting.weights(gramian, losses=losses) if self.takes_losses else self.weighting.weights(gramian)
        if self._average is None:
            self._average = new.clone()
        same_tasks("CRMOGM", len(self._average), len(new))
        # A new tensor each time, and a copy of it: reports hand weights to the user, who may write to them.
        self._average = self.alpha * self._average.to(new) + (1.0 - self.alpha) * new
        return self._average.clone()

    def forward(self, gradients: Tensor | TaskGradients) -> Tensor:
        """The update ``[d]`` of a Jacobian ``[m, d]`` or ``TaskGradients``."""
        if isinstance(gradients, TaskGradients):
            losses = gradients.losses if self.takes_losses else None
            return gradients.combine(self.weights(gradients.host_gramian, losses=losses))
        jacobian = checks.jacobian(gradients).detach()
        gramian = gramian_of(jacobian).cpu()
        if jacobian.dtype is torch.float64 and not checks.in_range(gramian):
            lengths = isinstance(self.method, GramianMethod) and self.method.remembers_lengths
            return update_out_of_range(self, jacobian, lambda known, _: self.weights(known), remembers_lengths=lengths)
        checks.refuse_lost(jacobian, gramian)
        return weighted_sum(jacobian, self.weights(gramian), gramian)

    def reset(self) -> None:
        """Forget the average, and what the weighting remembers."""
        self._average = None
        super().reset()

    def own_state(self) -> dict[str, Any]:
        """The average."""
        return {"average": self._average}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._average = state["average"]
