"""Sizes of which float64 holds the squares, rows of which it does not, and how a matrix is brought into range."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from mtl_core.errors import InvalidJacobianError

__all__ = ["SQUARES", "in_range", "into_range", "refuse_lost", "refuse_lost_rows", "row_norms", "times_power"]

SQUARES = (1e-200, 1e200)
"""Largest squared norms of which neither the products nor what is left of them underflows or overflows."""


def in_range(gramian: Tensor) -> bool:
    """Whether the largest squared norm of a Gramian ``[m, m]`` on the CPU is one that can be computed with."""
    largest: float = max(gramian.numpy().diagonal().tolist())
    return SQUARES[0] <= largest <= SQUARES[1]


LEAST = 1e-300
"""Squared norms below this may have lost digits, or all of them, as squares next to the end of float64 have.

Of 10⁸ entries whose squares are rounded to multiples of 5e-324 the sum is off by 5e-316."""


def refuse_lost(matrix: Tensor, gramian: Tensor, *, name: str = "jacobian", whose: Sequence[str] = ()) -> None:
    """Refuse a matrix of which some rows are not zero and yet too small for float64 to square.

    Such a row has inner products of 0, or wrong ones, with itself and with others: a task that is there would be taken
    for one without a gradient. On an accelerator nothing is looked at, as that would mean waiting for it.

    Args:
        matrix: ``[m, d]``.
        gramian: of it.
        name: of the matrix, for the error.
        whose: names of the rows, if they have some.

    Raises:
        InvalidJacobianError: naming the rows.
    """
    if matrix.dtype is not torch.float64 or not gramian.is_cpu or not matrix.numel():
        return
    refuse_lost_rows(
        gramian,
        lambda row: float(matrix[row].detach().abs().max()),
        what=f"each row of `{name}`",
        called=[*map(repr, whose)] or [f"row {row}" for row in range(len(matrix))],
    )


def refuse_lost_rows(
    gramian: Tensor,
    largest: Callable[[int], float],
    *,
    what: str,
    called: Sequence[str],
    among: Collection[int] | None = None,
    further: str = "",
) -> None:
    """The same of gradients in float64 of which no matrix need be there; other dtypes lose no square in float64.

    Args:
        gramian: on the CPU.
        largest: the largest entry of one of them by its absolute value. It is asked where the Gramian has a square that
            is zero or nearly so, which the gradient may be as well.
        what: one of them, for the error.
        called: their names.
        among: which of them are looked at; ``None`` for all.
        further: what else there is to say.

    Raises:
        InvalidJacobianError: naming those that are not zero.
    """
    squares: list[float] = gramian.numpy().diagonal().tolist()
    if min(squares) >= LEAST:
        return
    suspects = [row for row, size in enumerate(squares) if size < LEAST and (among is None or row in among)]
    lost = {called[row]: size for row in suspects if (size := largest(row)) > 0.0}
    if lost:
        told = ", ".join(f"{size:.6g} in {name}" for name, size in lost.items())
        raise InvalidJacobianError(
            f"{what} must be zero or have a norm of at least 1e-150, got largest entries of {told}, whose squares "
            f"float64 does not hold.{further} Multiply the losses of these tasks by a large constant, or leave them "
            "out."
        )


def row_norms(matrix: Tensor) -> Tensor:
    """The norm of each row of a matrix ``[m, d]``, float64 ``[m]``: on the CPU of any size that float64 holds."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=torch.float64)
    if matrix.dtype is not torch.float64 or not matrix.is_cpu or not matrix.numel():
        return norms
    if all(1e-145 < norm < 1e150 for norm in norms.tolist()):
        return norms
    # Each row in units of its own largest entry, a power of two.
    largest = matrix.abs().amax(dim=1)
    exponents = torch.where(largest > 0.0, largest, 1.0).frexp().exponent
    # In two steps: the power itself may be larger than any number.
    half = exponents // 2
    rest = exponents - half
    scaled = torch.ldexp(torch.ldexp(matrix, -half[:, None]), -rest[:, None])
    return torch.ldexp(torch.ldexp(torch.linalg.vector_norm(scaled, dim=1), half), rest)


def into_range(matrix: Tensor) -> tuple[Tensor, int]:
    r"""A finite matrix divided by a power of two, :math:`2^e`, that brings its largest entry near 1, and ``e``.

    Nothing is rounded by that, save what is too small beside the largest entry to have a part in sums of squares.

    Returns:
        the matrix, and ``e``, which is even; a matrix of zeros as it is, and 0.
    """
    largest = float(matrix.detach().abs().max()) if matrix.numel() else 0.0
    exponent = 2 * (math.frexp(largest)[1] // 2)
    return times_power(matrix, -exponent), exponent


def times_power(matrix: Tensor, exponent: float) -> Tensor:
    r"""A matrix times :math:`2^e`."""
    # In two steps: the power itself may be larger than any number of its dtype.
    half: float = 2.0 ** (0.5 * exponent)
    return matrix * half * half
