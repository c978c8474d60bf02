"""Jacobians and Gramians: what they may hold, and the range in which they can be computed with."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl_core.errors import InvalidJacobianError

__all__ = [
    "ENTRIES_APART",
    "SUMS_APART",
    "finite_jacobian",
    "gramian",
    "is_gramian",
    "is_jacobian",
    "is_possible",
    "jacobian",
    "square",
]


def _matrix(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise InvalidJacobianError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    if value.ndim != 2:
        raise InvalidJacobianError(
            f"`{name}` must have two dimensions, one row per task, got shape {tuple(value.shape)}. "
            "Flatten each task's gradient into one row."
        )
    if value.shape[0] == 0:
        raise InvalidJacobianError(f"`{name}` must have at least one row, got shape {tuple(value.shape)}.")
    if not value.is_floating_point():
        raise InvalidJacobianError(
            f"`{name}` must be of a real floating dtype, got {value.dtype}. Use .float(), or torch.view_as_real for "
            "complex."
        )
    if value.layout != torch.strided or value.is_meta:
        kind = "the meta device" if value.is_meta else f"layout {value.layout}"
        raise InvalidJacobianError(f"`{name}` must be dense and hold numbers, got a tensor of {kind}. Use .to_dense().")
    return value


def _finite(name: str, value: Tensor) -> Tensor:
    # One small reduction; on an accelerator this is the single synchronisation of the check.
    if not bool(torch.isfinite(value.detach().sum())) and not bool(torch.isfinite(value.detach()).all()):
        bad = [i for i, row in enumerate(value.detach()) if not bool(torch.isfinite(row).all())]
        raise InvalidJacobianError(
            f"`{name}` must be finite, got NaN or infinity in row(s) {bad} of shape {tuple(value.shape)}. "
            "Look at these tasks' losses, or lower the learning rate or loss scale."
        )
    return value


# Decided by a few attributes: a method is called in a training loop, and only what fails is looked at in detail.
def is_jacobian(value: object) -> bool:
    """Whether a value is a real floating matrix with a row, dense; its entries are not looked at."""
    return (
        isinstance(value, Tensor)
        and value.ndim == 2
        and value.shape[0] > 0
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
    )


def is_gramian(value: object) -> bool:
    """Whether a value is a real floating square matrix with a row; its entries are not looked at."""
    return is_jacobian(value) and value.shape[0] == value.shape[1]  # type: ignore[attr-defined]


def finite_jacobian(value: Tensor) -> Tensor:
    """A checked Jacobian ``[m, d]`` without its graph.

    Raises:
        InvalidJacobianError: it is not a finite real floating matrix with a row.
    """
    if is_jacobian(value):
        known = value.detach()
        # Whatever is not finite makes the sum so. A sum may also overflow: then the rows are read one by one.
        if math.isfinite(known.sum().item()):
            return known
    return jacobian(value).detach()


def jacobian(matrix: Tensor, *, name: str = "jacobian") -> Tensor:
    """Return ``matrix`` if it is a finite real floating Jacobian ``[m, d]`` with ``m >= 1``.

    Raises:
        InvalidJacobianError: otherwise, naming the rows that are not finite.
    """
    return _finite(name, _matrix(name, matrix))


ENTRIES_APART, SUMS_APART = 4.0, 4096.0
"""How many roundings of its entries, and of the sums behind them, the two halves of a Gramian may differ by."""


def square(name: str, matrix: Tensor) -> Tensor:
    """Return ``matrix`` if it is a finite real floating square matrix ``[m, m]`` with ``m >= 1``.

    Raises:
        InvalidJacobianError: otherwise.
    """
    _matrix(name, matrix)
    if matrix.shape[0] != matrix.shape[1]:
        raise InvalidJacobianError(f"`{name}` must be square, got shape {tuple(matrix.shape)}.")
    return _finite(name, matrix)


def gramian(matrix: Tensor, *, name: str = "gramian") -> Tensor:
    r"""Return ``matrix`` if it is a finite real floating symmetric matrix ``[m, m]`` with ``m >= 1``.

    The halves of a product of a matrix with its own transpose may be rounded apart; more than that is no Gramian, nor
    is a matrix whose diagonal is negative, or that has an entry larger than the two norms allow
    (:math:`|G_{ij}| \le \|g_i\| \|g_j\|`).

    Raises:
        InvalidJacobianError: otherwise.
    """
    return _possible(name, _symmetric(name, square(name, matrix)))


def is_possible(matrix: NDArray[np.float64], dtype: torch.dtype) -> bool:
    """Whether no entry of a finite symmetric matrix is larger than inner products can be.

    Args:
        matrix: ``[m, m]``.
        dtype: in which it was computed.
    """
    above, tiny = _leeway(dtype)
    if len(matrix) > 8:
        squares = matrix.diagonal()
        if squares.min() < 0.0:
            return False
        # Roots, since squares of the entries may leave the range.
        lengths = np.sqrt(squares + tiny)
        return not (np.abs(matrix) > lengths[:, None] * (math.sqrt(above) * lengths)).any()
    # An array takes longer to ask than a few numbers.
    rows = matrix.tolist()
    known = [row[k] + tiny for k, row in enumerate(rows)]
    for k, row in enumerate(rows):
        if row[k] < 0.0:
            return False
        for j in range(k):
            if row[j] * row[j] > above * known[k] * known[j]:
                return False
    return True


@cache
def _leeway(dtype: torch.dtype) -> tuple[float, float]:
    """By what a squared entry may exceed the product of two squared norms: a factor, and what underflow hides."""
    info = torch.finfo(dtype)
    return (1.0 + min(max(1e-9, 1e4 * info.eps), 0.1)) ** 2, float(info.tiny)


def _possible(name: str, matrix: Tensor) -> Tensor:
    wide = matrix.detach().double()
    above, tiny = _leeway(matrix.dtype)
    lengths = wide.diagonal()
    if bool((lengths < 0.0).any()):
        k = int(lengths.argmin())
        raise InvalidJacobianError(
            f"`{name}` must have squared norms on its diagonal, got {float(lengths[k]):.6g} at [{k}, {k}]."
        )
    apart = wide.square() > above * (lengths[:, None] + tiny) * (lengths + tiny)
    if bool(apart.any()):
        row, column = divmod(int(apart.flatten().int().argmax()), len(matrix))
        raise InvalidJacobianError(
            f"`{name}` must hold inner products, none larger than the product of two norms, got "
            f"{float(wide[row, column]):.6g} at [{row}, {column}] beside squared norms of {float(lengths[row]):.6g} "
            f"and {float(lengths[column]):.6g}. Give J @ J.T of the task gradients J."
        )
    return matrix


def _symmetric(name: str, matrix: Tensor) -> Tensor:
    wide = matrix.detach().double()
    lengths = wide.diagonal().clamp(min=0).sqrt()
    # Sums of narrower numbers are accumulated in float32.
    own, sums = torch.finfo(matrix.dtype), torch.finfo(torch.promote_types(matrix.dtype, torch.float32))
    allowed = (ENTRIES_APART * own.eps + SUMS_APART * sums.eps) * lengths[:, None] * lengths + own.tiny
    apart = (wide - wide.mT).abs() - allowed
    if bool((apart > 0).any()):
        row, column = divmod(int(apart.argmax()), len(matrix))
        raise InvalidJacobianError(
            f"`{name}` must be symmetric, as inner products are, got {float(wide[row, column]):.6g} at "
            f"[{row}, {column}] and {float(wide[column, row]):.6g} at [{column}, {row}]."
        )
    return matrix
