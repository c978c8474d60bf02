"""The Gramian of a Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gramian_of"]

_BLOCK = 1 << 19
"""Elements of a Jacobian that are converted to float64 at a time: 4 MiB, which stays in a core's cache."""


def gramian_of(jacobian: Tensor) -> Tensor:
    r"""The Gramian :math:`J J^\top`, ``[m, m]``, accumulated in float64.

    The columns are converted block by block, so that no float64 copy of the Jacobian is made. Rounding the products to
    float32 instead would lose the angle between near-parallel gradients below :math:`10^{-4}` radians.

    Args:
        jacobian: ``[m, d]`` of any real floating dtype.

    Returns:
        float64 ``[m, m]``, exactly symmetric.
    """
    n_tasks, size = jacobian.shape
    matrix = jacobian.detach()
    block = max(1, _BLOCK // n_tasks)
    if size <= block or matrix.dtype == torch.float64:
        wide = matrix.to(torch.float64)
        gramian = wide @ wide.T
    else:
        gramian = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=matrix.device)
        for start in range(0, size, block):
            wide = matrix[:, start : start + block].to(torch.float64)
            gramian.addmm_(wide, wide.T)
    return (gramian + gramian.T).mul_(0.5)
