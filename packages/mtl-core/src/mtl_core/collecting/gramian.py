"""The Gramian of a Jacobian."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl_core.autocasting import full_precision

__all__ = ["cancels", "gramian_of", "weighted_sum"]

_BLOCK = 1 << 19
"""Elements that are converted to float64 at a time for a weighted sum: 4 MiB, which stays in a core's cache."""


@full_precision
def gramian_of(jacobian: Tensor) -> Tensor:
    r"""The Gramian :math:`J J^\top`, ``[m, m]``, accumulated in float64.

    The columns are converted block by block, so that no float64 copy of the Jacobian is made. Rounding the products to
    float32 instead would lose the angle between near-parallel gradients below :math:`10^{-4}` radians.

    Args:
        jacobian: ``[m, d]`` of any real floating dtype.

    Returns:
        float64 ``[m, m]``, exactly symmetric.
    """
    n_tasks = len(jacobian)
    matrix = jacobian.detach()
    entries = matrix.numel()
    if matrix.is_cpu and entries <= min(_FEW, n_tasks * _SHORT) and n_tasks * entries <= _SMALL:
        # In numpy, as in `cancels`: its calls are shorter, and a contiguous matrix times itself comes out symmetric.
        array = matrix.double().resolve_neg().contiguous().numpy()
        with np.errstate(all="ignore"):  # what is not finite is found, and named, by whoever reads the Gramian
            few = n_tasks <= _FEW_ROWS and entries >= n_tasks * _LONG
            return torch.from_numpy(_by_pairs(array) if few else array.dot(array.T))
    gramian = matrix @ matrix.T if matrix.dtype == torch.float64 else _in_blocks(matrix)
    # BLAS need not round both halves alike; solvers rely on exact symmetry.
    return (gramian + gramian.T).mul_(0.5)


def _by_pairs(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The products of a few rows, pair by pair."""
    count = len(rows)
    products = np.empty((count, count))
    for i, row in enumerate(rows):
        for k in range(i, count):
            products[i, k] = products[k, i] = row.dot(rows[k])
    return products


def _in_blocks(matrix: Tensor) -> Tensor:
    """The product of a matrix ``[m, d]`` with itself, block by block of its columns in float64."""
    n_tasks, size = matrix.shape
    # MKL multiplies a tall matrix by itself in half the time that a flat one takes.
    tall = matrix.is_cpu and n_tasks >= _TALL
    width = min(size, max(1, (_BLOCK if not matrix.is_cpu else _TALL_BLOCK if tall else _FLAT_BLOCK) // n_tasks))
    if width == size:
        wide = matrix.T.to(torch.float64, memory_format=torch.contiguous_format).T if tall else matrix.double()
        return wide @ wide.T
    shape = (width, n_tasks) if tall else (n_tasks, width)
    # One buffer for all blocks: memory that is fresh for each costs more than the product of a few rows.
    buffer = torch.empty(shape, dtype=torch.float64, device=matrix.device)
    wide = buffer.T if tall else buffer
    gramian = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=matrix.device)
    for block in torch.split(matrix, width, dim=1):
        part = wide[:, : block.shape[1]]
        part.copy_(block)
        gramian.addmm_(part, part.T)
    return gramian


_TALL = 6
"""Rows from which a block's columns are laid out one after another on the CPU."""
_TALL_BLOCK = 1 << 18
_FLAT_BLOCK = 1 << 16
"""Elements that are converted to float64 at a time on the CPU, by measurement."""
_FEW_ROWS = 5
_LONG = 2_000
"""Up to so many rows of so many entries or more are multiplied pair by pair: with 3,168 to 8,000 entries that takes
0.26 to 0.82 of the time of BLAS's product of matrices, with 300 some three to four times as long."""
_FEW = 1 << 15
"""Elements up to which numpy's shorter calls outweigh its slower product of few rows."""
_SHORT = 10_000
"""Entries of a row up to which numpy's BLAS multiplies two of them on the calling thread."""
_SMALL = 1 << 18
"""Products up to which numpy's BLAS keeps to the calling thread."""


@full_precision
def weighted_sum(jacobian: Tensor, weights: Tensor, gramian: Tensor | None = None) -> Tensor:
    r"""The combination :math:`J^\top w`, in float64 where its terms cancel beyond the gradients' own precision.

    Next to a stationary point the combination is a small difference of large gradients; summed in float32 it would be
    noise of up to some percent of the largest.

    Args:
        jacobian: ``[m, d]``.
        weights: ``[m]``, of any device and dtype.
        gramian: the Jacobian's Gramian on the CPU, by which cancellation is seen beforehand. Without it, or with
            weights that are not on the CPU, the sum is plain, since looking would mean waiting for the device.

    Returns:
        ``[d]`` in the Jacobian's dtype.
    """
    # Half precision cannot hold weights that lie a thousandfold apart.
    wide = torch.float32 if jacobian.dtype in (torch.float16, torch.bfloat16) else jacobian.dtype
    exact = weights.device.type == "cpu" and cancels(weights, gramian, wide)
    if not exact and wide == jacobian.dtype:
        return weights.to(device=jacobian.device, dtype=wide, non_blocking=True) @ jacobian
    moved = weights.to(jacobian.device, torch.float64 if exact else wide)
    width = max(1, _BLOCK // len(jacobian))
    parts = [moved @ block.to(moved.dtype) for block in torch.split(jacobian, width, dim=1)]
    return torch.cat(parts).to(jacobian.dtype)


def cancels(weights: Tensor, gramian: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether a sum in ``dtype`` would be mostly rounding, as its terms cancel, or its weights be infinite or zero.

    Args:
        weights: ``[m]``, on the CPU.
        gramian: the Gramian on the CPU, if it is known.
        dtype: of the sum.
    """
    if dtype == torch.float64:
        return False
    # In lists, which for so few numbers take a fifth of the time.
    values: list[float] = weights.tolist()
    info = _info(dtype)
    least, most = info.tiny, info.max
    if not all(least <= abs(weight) <= most or weight == 0.0 for weight in values):
        # Weights of a degree below 1 grow as gradients shrink, past what single precision holds, and the weight of a
        # gradient beside which the others are tiny may be as small.
        return True
    if gramian is None:
        return False
    square = gramian.detach().numpy()
    # The norm of the sum, sqrt(w'Gw), against the sum of its terms' norms, |w_i| times |g_i|. Rounding is relative to
    # the terms: from the limit below on, fewer than four digits of the sum would be right.
    squares: list[float] = square.diagonal().tolist()
    terms = sum(abs(w) * math.sqrt(max(s, 0.0)) for w, s in zip(values, squares, strict=True))
    exact = np.asarray(values)
    return float(exact.dot(square).dot(exact)) <= (1e4 * info.eps * terms) ** 2


_info = cache(torch.finfo)
"""Asked in every step, and made anew by torch each time."""
