"""MARIGOLD: the worst task's decrement, without a single task gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtl_aggregators.bilevel.method import Bilevel, Estimate
from mtl_aggregators.bilevel.objectives import WorstCaseDecrement
from mtl_aggregators.bilevel.weight_models import SoftmaxWeights

__all__ = ["MARIGOLD"]


class MARIGOLD(Bilevel):
    r"""Multi-task gradient balancing by zeroth-order bilevel differentiation.

    .. math:: \min_{\lambda\in\Delta} \max_{\rho\in\Delta} \sum_i \rho_i \bigl(f_i(A(\lambda, \theta)) -
        f_i(\theta)\bigr), \qquad \lambda = \mathrm{softmax}(\beta a/f), \quad \rho = \mathrm{softmax}(\beta b/f)

    A named case of ``Bilevel``: softmax weights against the worst-case decrement, :math:`a` descending and :math:`b`
    ascending by Adam.

    Args:
        beta: :math:`\beta > 0`; the paper tunes it over 0.01, 0.03, 0.1, 0.3, 1 and 3.
        lr: learning rate of both Adams.
        radius: :math:`r`, how far the weights are moved.
        lookahead: ``"trial"``, the algorithm as printed, or ``"fused"``; see ``Bilevel``.
        probe: ``"same"`` or ``"next"``; see ``Bilevel``.
        update_every: train the weights in every k-th step only.
        estimate: ``"single_point"``, the paper's, ``"two_point"``, ``"antithetic"`` or ``"symmetric"``; see
            ``Bilevel``.
        hypergradient: ``"zeroth_order"``, the paper's, or ``"exact"``; see ``Bilevel``.
        bound: a lower bound of the losses, one number or one per task; :math:`f` is what lies above it.
        adversary: ``"trained"``, the paper's :math:`\rho`, or ``"exact"``: all of it on the worst task of the batch.
        generator: source of the directions, on the CPU.

    Raises:
        InvalidParameterError: a setting is out of its range, or two do not go together.
        InvalidInputError: when a loss is not above its bound; the task is named.

    Note:
        The paper has no released code. Its :math:`A` trains all parameters on the weighted losses, heads included: that
        is ``heads="weighted"`` of a step; by default heads follow their own losses, as for every method.

        The defaults are the paper's, and slow: in some hundred steps weights stay within 0.01 of equal, since Adam
        moves a parameter by at most about ``lr`` per step, and by far less where its gradients are mostly noise, as
        those of a single point are. A larger ``lr`` alone makes them wander. With a better estimate too they follow the
        trained adversary, which starts at the sum of the losses, to the task with the longest gradient, and may stay
        there. ``adversary="exact", estimate="symmetric", radius=0.1, lr=1e-2`` follows the worst task instead, and
        so does, with more noise and at half the cost or less, ``"antithetic"`` with ``lookahead="fused"``.

        A logit is :math:`\beta a/f`, so that near its bound a loss makes much of a small :math:`a`. In 7,000 steps of
        ten robot tasks, whose losses fell to 0.003, the paper's settings put 0.26 to 1.00 of the weight on one of the
        tasks that were learned best (``docs/evidence/marigold.md``). A ``bound`` well below what the losses come to
        keeps :math:`f` from vanishing.

    References:
        Chen et al., *Feed m Birds with One Scone: Accelerating Multi-task Gradient Balancing via Bi-level
        Optimization*, algorithms 1 and 2, appendix C.

    Example:
        >>> import torch
        >>> from mtl_core import step
        >>> from mtl_core.testing import small_problem
        >>> problem, batch = small_problem(3)
        >>> optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        >>> report = step(problem, batch, optimizer, MARIGOLD(beta=1.0))
        >>> round(float(report.weights.sum()), 6)
        1.0
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        lr: float = 1e-4,
        radius: float = 1e-3,
        lookahead: Literal["trial", "fused"] = "trial",
        probe: Literal["same", "next"] = "same",
        update_every: int = 1,
        estimate: Estimate = "single_point",
        hypergradient: Literal["zeroth_order", "exact"] = "zeroth_order",
        bound: float | Sequence[float] | Tensor = 0.0,
        adversary: Literal["trained", "exact"] = "trained",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            upper=WorstCaseDecrement(beta=beta, lr=lr, bound=bound, adversary=adversary),
            weights=SoftmaxWeights(beta=beta, lr=lr, bound=bound),
            lookahead=lookahead,
            probe=probe,
            update_every=update_every,
            estimate=estimate,
            hypergradient=hypergradient,
            radius=radius,
            generator=generator,
        )
        self.beta = float(beta)
