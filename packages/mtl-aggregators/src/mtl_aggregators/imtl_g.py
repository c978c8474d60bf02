"""IMTL-G: the combination with equal projections on all tasks."""

from __future__ import annotations

import numpy as np

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.solvers import Solution, unit_rows
from mtl_aggregators.solvers.equal_projection import dependence, equal_shares
from mtl_aggregators.solvers.rows import ones
from mtl_aggregators.solvers.solution import Vector

__all__ = ["IMTLG"]

CANCELLED = 1e-10
"""Sum of the coefficients, relative to that of their sizes, which rounding of ill-conditioned cosines may leave."""


class IMTLG(GramianMethod):
    r"""Impartial multi-task learning, the gradient part: equal projections of the update on all unit gradients.

    .. math:: \langle g_w, u_i\rangle = \langle g_w, u_j\rangle \text{ for all } i, j, \qquad \sum_i w_i = 1

    In closed form :math:`w_i \propto (C^{-1} 1)_i / \|g_i\|` with :math:`C` the cosines. Weights may be negative, and
    so may the common projection: such an update ascends every task.

    Args:
        backend: where the weights are computed; see ``GramianMethod``.

    Note:
        The paper's form :math:`g_1 U^\top (D U^\top)^{-1}` gives the same weights but singles out the first task and
        fails for dependent gradients. Here the least-norm solution is taken. If zero lies in the affine hull of the
        unit gradients, the only equal projections are zero, and so is the update; the report says
        ``regularised_solve``. Where :math:`\sum_i w_i = 0` no normalisation exists, and all weights are 0. A zero
        gradient has no projection and is left out.

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, equation 6.

    Example:
        >>> import torch
        >>> IMTLG()(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([0.7500, 0.7500])
    """

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="weighted",
            laws=frozenset(
                {"permutation", "homogeneous", "orthogonal", "equal_rows", "zero_rows", "zero_when_stationary"}
            ),
            reference="Liu et al., ICLR 2021",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        rows = unit_rows(gramian)
        k = len(rows.norms)
        if not k:
            return np.full(rows.size, 1.0 / rows.size)
        shares, missing = equal_shares(rows, ones(k))
        residual = max(abs(progress - 1.0) for progress in rows.cosines.dot(shares).tolist())
        self.record(Solution(rows.expand(shares), residual, 0, missing))
        # Where zero lies in the affine hull of the unit gradients the only equal projections are zero, and the weights
        # are those of a combination that vanishes. The smallest norm keeps the quotients in range and is divided out
        # below.
        weights = (dependence(rows) if missing else shares) * (min(rows.norms.tolist()) / rows.norms)
        parts = weights.tolist()
        total = sum(parts)
        if abs(total) <= CANCELLED * sum(map(abs, parts)):
            return np.zeros(rows.size)
        weights /= total
        return rows.expand(weights)
