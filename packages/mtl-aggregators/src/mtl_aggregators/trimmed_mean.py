"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_core import InvalidInputError, checks

__all__ = ["TrimmedMean"]

Array = NDArray[np.floating[Any]]


class TrimmedMean(JacobianMethod):
    r"""The mean of each coordinate without its ``trim`` largest and ``trim`` smallest entries.

    With :math:`m = 2\,\text{trim} + 1` it is the median.

    Args:
        trim: how many entries are left out at either end; ``m`` must be at least ``2 * trim + 1``.

    Raises:
        InvalidParameterError: ``trim`` is not a whole number of at least 1.
        InvalidInputError: when called on fewer than ``2 * trim + 1`` tasks.

    References:
        Yin et al., *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018, definition 2.

    Example:
        >>> TrimmedMean()(torch.tensor([[1.0, -9.0], [2.0, 5.0], [9.0, 4.0]]))
        tensor([2., 4.])
    """

    def __init__(self, *, trim: int = 1) -> None:
        super().__init__()
        self.trim = checks.positive_int("trim", trim)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("1/m", lambda m: 1.0 / m)
        return Facts(
            needs="jacobian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset({"permutation", "homogeneous", "equal_rows"}),
            reference="Yin et al., ICML 2018",
            min_tasks=2 * self.trim + 1,
        )

    def combine(self, jacobian: Tensor) -> Tensor:
        """The update ``[d]``."""
        m = len(jacobian)
        kept = m - 2 * self.trim
        if kept < 1:
            raise InvalidInputError(
                f"`jacobian` must have at least {2 * self.trim + 1} rows for trim={self.trim}, got {m}. Lower trim."
            )
        if not jacobian.is_cpu or jacobian.dtype not in (torch.float32, torch.float64):
            return torch.sort(jacobian, dim=0).values[self.trim : self.trim + kept].mean(dim=0)
        rows = jacobian.resolve_neg().numpy()
        if m * self.trim <= SHALLOW and (m <= FEW or rows.shape[1] >= WIDE):
            return torch.from_numpy(_selected(rows, self.trim))
        ordered = rows.copy()
        ordered.sort(axis=0)
        # Not mean(), which takes three times as long for few columns.
        means = np.add.reduce(ordered[self.trim : self.trim + kept])
        means /= kept
        return torch.from_numpy(means)


SHALLOW = 64
"""Comparisons per entry, ``m * trim``, up to which selecting the extremes takes less time than sorting."""
FEW = 4
WIDE = 512
"""Rows up to which, and columns from which, the calls of a selection are outweighed by what each of them does."""
BLOCK = 1 << 14
"""Columns worked on at a time: what is carried from row to row stays in a core's cache."""


def _selected(rows: Array, trim: int) -> Array:
    """The mean ``[d]`` of each column of ``[m, d]`` without its ``trim`` largest and smallest entries."""
    m, size = rows.shape
    kept = m - 2 * trim
    means = np.zeros(size, rows.dtype)
    for start in range(0, size, BLOCK):
        largest: list[Array] = []
        smallest: list[Array] = []
        inner = means[start : start + BLOCK]
        for entry in rows[:, start : start + BLOCK]:
            # An entry displaces what it exceeds; what is displaced goes on to the next place, and the rest is kept.
            rest = _placed(entry, largest, trim, np.maximum, np.minimum)
            if rest is not None:
                rest = _placed(rest, smallest, trim, np.minimum, np.maximum)
            if rest is not None:
                inner += rest
        if kept > 1:
            inner /= kept
    return means


def _placed(entry: Array, extremes: list[Array], places: int, keep: np.ufunc, pass_on: np.ufunc) -> Array | None:
    """Put entries among the extremes, ordered, and return what falls out; nothing does while there is room."""
    for place, known in enumerate(extremes):
        extremes[place], entry = keep(known, entry), pass_on(known, entry)
    if len(extremes) < places:
        extremes.append(entry)
        return None
    return entry
