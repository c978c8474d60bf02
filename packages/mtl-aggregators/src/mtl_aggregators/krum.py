"""Krum: the gradients that have the nearest neighbours."""

from __future__ import annotations

import numpy as np

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.solvers.rows import EPS
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, InvalidParameterError, checks

__all__ = ["Krum"]


class Krum(GramianMethod):
    r"""Multi-Krum: the mean of the gradients whose neighbours are nearest.

    The score of a gradient is :math:`\sum_j \|g_i - g_j\|^2` over its :math:`m - f - 2` nearest neighbours; the ``k``
    gradients of least score are averaged.

    Args:
        n_byzantine: ``f``, how many gradients may be corrupted; the method needs ``m >= 2f + 3`` then.
        n_selected: ``k``, how many are averaged, at most ``m``; the paper's Krum is 1.

    Raises:
        InvalidParameterError: ``n_byzantine`` is negative or ``n_selected`` is not at least 1, or one is not whole.
        InvalidInputError: when called on fewer tasks than ``n_byzantine`` and ``n_selected`` need.

    Note:
        With ``n_byzantine=0`` fewer than three gradients are taken too; all have the same score then, and the first
        ones are selected. The same goes for every tie.

    References:
        Blanchard et al., *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*, NeurIPS 2017,
        sections 4 and 6.

    Example:
        >>> import torch
        >>> Krum()(torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.0, 9.0]]))
        tensor([1., 0.])
    """

    def __init__(self, *, n_byzantine: int = 0, n_selected: int = 1) -> None:
        super().__init__()
        if type(n_byzantine) is not int or n_byzantine < 0:
            raise InvalidParameterError(f"`n_byzantine` must be a whole number of at least 0, got {n_byzantine!r}.")
        self.n_byzantine = n_byzantine
        self.n_selected = checks.positive_int("n_selected", n_selected)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset({"homogeneous", "orthogonal", "simplex", "equal_rows"}),
            reference="Blanchard et al., NeurIPS 2017",
            min_tasks=max(2 * self.n_byzantine + 3 if self.n_byzantine else 1, self.n_selected),
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m = len(gramian)
        if m < self.facts.min_tasks:
            raise InvalidInputError(
                f"`gramian` must have at least {self.facts.min_tasks} tasks for n_byzantine={self.n_byzantine} and "
                f"n_selected={self.n_selected}, got {m}. Lower one of the two."
            )
        largest = float(gramian.diagonal().max())
        # In units of the longest gradient, so that sums of squares neither overflow nor underflow.
        known = gramian / largest if largest > 0.0 else gramian
        squares = known.diagonal()
        distances = squares + squares[:, None] - 2.0 * known
        # A gradient is no neighbour of its own: sorted first, it is left out by the slice below.
        np.fill_diagonal(distances, -np.inf)
        distances.sort(axis=1)
        neighbours = max(0, min(m - 1, m - self.n_byzantine - 2))
        # What rounding leaves of the distance between equal gradients is no distance.
        scores = np.maximum(distances[:, 1 : 1 + neighbours], 0.0).sum(axis=1)
        order = scores.argsort(kind="stable")
        last, rounding = scores[order[self.n_selected - 1]], 16.0 * EPS * m
        ties = np.flatnonzero(np.abs(scores - last) <= rounding)
        if len(ties) > 1:
            # Scores that differ by rounding alone are a tie, of which the first tasks are taken.
            below = np.flatnonzero(scores < last - rounding)
            order = np.concatenate([below, ties])
        weights = np.zeros(m)
        weights[order[: self.n_selected]] = 1.0 / self.n_selected
        return weights
