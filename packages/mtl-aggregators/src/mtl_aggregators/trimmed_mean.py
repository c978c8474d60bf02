"""The coordinate-wise trimmed mean."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_core import InvalidInputError, checks

__all__ = ["TrimmedMean"]


class TrimmedMean(JacobianMethod):
    r"""The mean of each coordinate without its ``trim`` largest and ``trim`` smallest entries.

    With :math:`m = 2\,\text{trim} + 1` it is the median.

    Args:
        trim: how many entries are left out at either end; ``m`` must be at least ``2 * trim + 1``.

    Raises:
        InvalidParameterError: ``trim`` is not a whole number of at least 1.

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
        return _sorted(jacobian)[self.trim : self.trim + kept].mean(dim=0)


def _sorted(jacobian: Tensor) -> Tensor:
    """The entries of each column in order. Numpy's sort, which keeps no positions, is several times faster."""
    if jacobian.device.type == "cpu" and jacobian.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(jacobian.numpy(), axis=0))
    return torch.sort(jacobian, dim=0).values
