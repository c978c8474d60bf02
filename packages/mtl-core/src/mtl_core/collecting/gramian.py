"""The Gramian of a Jacobian."""

from __future__ import annotations

import math
from functools import cache
from operator import mul
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl_core.autocasting import full_precision
from mtl_core.blas_threads import NUMPY, BlasThreads

__all__ = ["add_product_", "cancels", "gramian_of", "weighted_sum"]

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
    matrix = jacobian.detach()
    n_tasks, size = matrix.shape
    several = _SEVERAL.get(matrix.dtype)
    if matrix.is_cpu and several and (n_tasks >= several or size <= min(_SHORT, _FEW // max(1, n_tasks))):
        return torch.from_numpy(_on_host(matrix))
    gramian = matrix @ matrix.T if matrix.dtype == torch.float64 else _in_blocks(matrix)
    # BLAS need not round both halves alike; solvers rely on exact symmetry.
    return (gramian + gramian.T).mul_(0.5)


def _on_host(matrix: Tensor) -> NDArray[np.float64]:
    """The Gramian by numpy, whose calls are shorter.

    Of a contiguous array and its transpose it asks BLAS for half of the products and mirrors them. Torch asks for all,
    of which the other half is only to be averaged away.
    """
    array: NDArray[Any] = matrix.resolve_neg().numpy()
    n_tasks, size = array.shape
    with np.errstate(all="ignore"):  # what is not finite is found, and named, by whoever reads the Gramian
        if n_tasks * array.size > _SMALL:
            with _as_many_as_torch:
                return _by_blocks(array)
        wide = np.ascontiguousarray(array, dtype=np.float64)
        return _by_pairs(wide) if n_tasks < _FEW_ROWS and size >= _LONG else wide.dot(wide.T)


def _by_blocks(array: NDArray[Any]) -> NDArray[np.float64]:
    """The products of several rows, block by block of their columns in float64."""
    n_tasks, size = array.shape
    if array.dtype == np.float64 and (array.flags.c_contiguous or array.flags.f_contiguous):
        whole: NDArray[np.float64] = array.dot(array.T)
        return whole
    width = min(size, max(1, _BLOCK_ON_HOST // n_tasks))
    # One buffer for all blocks: memory that is fresh for each costs more than the product of a few rows.
    buffer, gramian = np.empty(n_tasks * width), np.zeros((n_tasks, n_tasks))
    for start in range(0, size, width):
        block = array[:, start : start + width]
        part = buffer[: block.size].reshape(block.shape)  # contiguous: of other arrays numpy does not mirror the half
        np.copyto(part, block)
        gramian += part.dot(part.T)
    return gramian


def add_product_(gramian: Tensor, block: Tensor) -> None:
    """Add the product of a contiguous float64 block ``[m, w]`` with itself; the halves may be rounded apart."""
    if block.is_cpu and len(block) >= _MANY:
        gramian.add_(torch.from_numpy(_on_host(block)))
    else:
        gramian.addmm_(block, block.T)


def _by_pairs(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The products of a few rows, pair by pair."""
    count = len(rows)
    products = np.empty((count, count))
    for i, row in enumerate(rows):
        for k in range(i, count):
            products[i, k] = products[k, i] = row.dot(rows[k])
    return products


def _in_blocks(matrix: Tensor) -> Tensor:
    """The product of a matrix ``[m, d]`` with itself by torch, block by block of its columns in float64."""
    n_tasks, size = matrix.shape
    width = min(size, max(1, (_BLOCK_OF_FEW if matrix.is_cpu else _BLOCK) // n_tasks))
    if width == size:
        wide = matrix.double()
        return wide @ wide.T
    buffer = torch.empty(n_tasks, width, dtype=torch.float64, device=matrix.device)
    gramian = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=matrix.device)
    for block in torch.split(matrix, width, dim=1):
        part = buffer[:, : block.shape[1]]
        part.copy_(block)
        gramian.addmm_(part, part.T)
    return gramian


_SEVERAL = {torch.float32: 6, torch.float64: 11}
"""Rows from which multiplying one half is a gain whatever their length: of few rows BLAS is slow to. numpy has no
bfloat16, and is slow to convert float16."""
_MANY = 24
"""The same of rows that were just written and lie in a core's cache: at 11 it takes 1.2 of the time, at 40 0.7."""
_BLOCK_ON_HOST = 1 << 16
_BLOCK_OF_FEW = 1 << 16
"""Elements that are converted to float64 at a time on the CPU, for several rows and for few, by measurement."""
_FEW_ROWS, _LONG = 6, 3_000
"""Fewer rows than that, of so many entries or more, go by pairs: with 3,168 to 8,000 entries that takes 0.26 to 0.82
of the time of BLAS's product of matrices, with 300 some three to four times as long."""
_FEW = 1 << 15
"""Elements up to which numpy's shorter calls outweigh its slower product of few rows."""
_SHORT = 10_000
"""Entries of a row up to which numpy's BLAS multiplies two of them on the calling thread."""
_SMALL = 1 << 18
"""Products up to which numpy's BLAS keeps to the calling thread."""

_as_many_as_torch = BlasThreads(torch.get_num_threads, (NUMPY,))
"""numpy has threads of its own, of which ``torch.set_num_threads`` knows nothing."""


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
    # In lists, and without a loop of Python's own: this is asked in every step, and the numbers are few.
    values: list[float] = weights.tolist()
    sizes = [*map(abs, values)]
    info = _info(dtype)
    if max(sizes) > info.max or min(filter(None, sizes), default=1.0) < info.tiny:
        # Weights of a degree below 1 grow as gradients shrink, past what single precision holds, and the weight of a
        # gradient beside which the others are tiny may be as small.
        return True
    if gramian is None:
        return False
    square = gramian.detach().numpy()
    # The norm of the sum, sqrt(w'Gw), against the sum of its terms' norms, |w_i| times |g_i|. Rounding is relative to
    # the terms: from the limit below on, fewer than four digits of the sum would be right.
    squares: list[float] = square.diagonal().tolist()
    terms: float = sum(map(mul, sizes, map(math.sqrt, map(abs, squares))))
    exact = np.asarray(values)
    return float(exact.dot(square).dot(exact)) <= (1e4 * info.eps * terms) ** 2


_info = cache(torch.finfo)
"""Asked in every step, and made anew by torch each time."""
