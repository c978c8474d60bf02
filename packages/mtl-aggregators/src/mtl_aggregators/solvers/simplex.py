"""The Euclidean projection on the probability simplex."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["project_simplex"]


def project_simplex(vector: Tensor) -> Tensor:
    r"""The point of :math:`\{w \ge 0, \sum_i w_i = 1\}` nearest to a vector, without waiting for its device.

    Args:
        vector: ``[m]``; where it is not finite, so is the result.

    Returns:
        ``[m]`` of the same dtype.

    References:
        Held, Wolfe and Crowder, *Validation of subgradient optimization*, Math. Programming 1974; Duchi et al.,
        *Efficient Projections onto the l1-Ball for Learning in High Dimensions*, ICML 2008, figure 1.

    Example:
        >>> project_simplex(torch.tensor([0.9, 0.5, -1.0]))
        tensor([0.7000, 0.3000, 0.0000])
    """
    # Only differences matter; the largest entry is 0 then, and the rest lose no digits to it.
    shifted = vector - vector.amax()
    ordered = torch.sort(shifted, descending=True).values
    count = torch.arange(1, len(vector) + 1, dtype=vector.dtype, device=vector.device)
    levels = (ordered.cumsum(0) - 1.0) / count
    # With NaN no entry is above its level; the first level is NaN too, which is what then comes out.
    kept = (ordered > levels).sum().clamp(min=1)
    return (shifted - levels.gather(0, (kept - 1).reshape(1))).clamp(min=0.0)
