"""ConFIG: the direction that all tasks share, as long as their projections on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.parameters import match_tasks, weight_vector
from mtl_aggregators.solvers import Solution, unit_rows
from mtl_aggregators.solvers.equal_projection import equal_shares
from mtl_aggregators.solvers.solution import Vector

__all__ = ["ConFIG"]

UNATTAINABLE = 1e-6
"""Part of the wanted cosines, the largest that dependent gradients admit, below which they admit none.

Rounding leaves an eigenvector known to about the root of what separates its eigenvalue from zero, and so the part of
the wanted cosines along it.
"""


class ConFIG(GramianMethod):
    r"""Conflict-free inverse gradients: equal cosines with all gradients, and the length of their projections' sum.

    .. math:: d = \Bigl(\sum_i \langle g_i, e\rangle\Bigr) e, \qquad e = \frac{U^+ 1}{\|U^+ 1\|}

    with the unit gradients as rows of :math:`U`. As long as these are linearly independent, all cosines are equal and
    positive.

    Args:
        preference: target ratios of the cosines ``[m]``, non-negative and not all zero; ``None`` for equal ones.

    Raises:
        InvalidParameterError: ``preference`` has a negative entry or is all zero.

    Note:
        :math:`U^+ 1 = U^\top C^+ 1` with :math:`C` the cosines, so that this is a weighting. Where dependent gradients
        do not admit the cosines, the nearest ones are taken, which may conflict; the report then says
        ``regularised_solve``. The update is zero where even these have no direction, as for opposite gradients. A
        zero gradient is left out.

    References:
        Liu, Chu and Thuerey, *ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks*, ICLR 2025,
        equation 2.

    Example:
        >>> import torch
        >>> ConFIG()(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([2., 2.])
    """

    def __init__(self, *, preference: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.preference = None if preference is None else weight_vector("preference", preference)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        laws: set[Law] = {"homogeneous", "orthogonal", "zero_rows"}
        if self.preference is None:
            laws |= {"permutation", "equal_rows"}
        scale = Scale("1", lambda m: 1.0)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws - ({"zero_rows"} if self.preference is not None else set())),
            reference="Liu, Chu and Thuerey, ICLR 2025",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m = len(gramian)
        targets: Vector = np.ones(m)
        if self.preference is not None:
            match_tasks("preference", self.preference, m)
            targets = self.preference.numpy()
        rows = unit_rows(gramian)
        wanted = targets if rows.kept is None else targets[rows.kept]
        if not wanted.any():
            return np.zeros(m)
        shares, missing = equal_shares(rows, wanted)
        image = rows.cosines @ shares
        residual = float(np.abs(image - wanted).max() / wanted.max())
        self.record(Solution(rows.expand(shares), residual, 0, missing))
        # Against what is wanted, not against the shares: where nothing of it can be had, as for as many gradients one
        # way as the other, shares and image are both rounding, and their ratio would be a direction out of nothing.
        if float(np.abs(image).max()) <= UNATTAINABLE * float(wanted.max()):
            return np.zeros(m)
        squared = float(shares @ image)
        # ⟨g_i, e⟩ = ‖g_i‖ (C z)_i / ‖x‖, and e = x / ‖x‖.
        length = float(rows.norms @ image) / squared
        return rows.expand(length * shares / rows.norms)
