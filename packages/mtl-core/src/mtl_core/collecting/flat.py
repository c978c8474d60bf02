"""Gradients of several parameters as one row: sizes, dtypes and the copy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

__all__ = [
    "Row",
    "added",
    "added_rows",
    "as_real",
    "empty_jacobian",
    "flat_size",
    "flatten_block_into",
    "flatten_into",
    "pick",
    "widest_dtype",
]

Row = tuple[Tensor | None, ...]
"""One task's gradient by each input; ``None`` where the task does not touch it."""


def added(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two gradients by one input, either of which may hold some rows only."""
    # Torch adds rows to a dense tensor, and not the other way round.
    return second + first if first.is_sparse and not second.is_sparse else first + second


def added_rows(first: Row, second: Row) -> Row:
    """The sum of two rows, in which any gradient may be missing."""
    return tuple(b if a is None else a if b is None else added(a, b) for a, b in zip(first, second, strict=True))


def as_real(gradient: Tensor) -> Tensor:
    """A gradient's real numbers: those of a complex one in pairs, its conjugation carried out."""
    # Torch conjugates lazily, by a mark that a view as pairs cannot show.
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def flat_size(parameter: Tensor) -> int:
    """Number of real entries of a parameter; a complex one has two each."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def widest_dtype(parameters: Sequence[Tensor]) -> torch.dtype:
    """The real dtype to which the parameters' gradients are promoted."""
    return reduce(torch.promote_types, {p.dtype.to_real() for p in parameters})


def empty_jacobian(n_tasks: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for a Jacobian ``[m, d]``."""
    return torch.empty(n_tasks, width, dtype=dtype, device=device)


def flatten_into(row: Tensor, gradients: Sequence[Tensor | None], shared: Sequence[Tensor]) -> None:
    """Write gradients into one row of the Jacobian, zero where there is none."""
    parts: list[Tensor] = []
    dtype = row.dtype
    for gradient, parameter in zip(gradients, shared, strict=True):
        if gradient is None:
            # One zero, seen as often as it is needed: no memory beside the row's.
            parts.append(row.new_zeros(()).expand(flat_size(parameter)))
        elif gradient.dtype is dtype and gradient.layout is torch.strided:
            # The common case: real, as the row is.
            parts.append(gradient.reshape(-1))
        else:
            dense = gradient.to_dense() if gradient.layout != torch.strided else gradient
            parts.append(as_real(dense).reshape(-1).to(dtype))
    # Straight into the row. In a plain cat the pieces would be copied twice.
    torch.cat(parts, out=row)


def flatten_block_into(block: Tensor, gradients: Sequence[Tensor | None], shared: Sequence[Tensor]) -> None:
    """As ``flatten_into`` for several rows ``[k, d]`` at once; the gradients have the rows as first dimension."""
    parts: list[Tensor] = []
    for gradient, parameter in zip(gradients, shared, strict=True):
        if gradient is None:
            parts.append(block.new_zeros(()).expand(len(block), flat_size(parameter)))
            continue
        real = as_real(gradient)
        parts.append(real.reshape(len(block), -1).to(block.dtype))
    torch.cat(parts, dim=1, out=block)


def pick(values: Tensor, index: Sequence[int]) -> Tensor:
    """The entries at ``index``, one by one: an index made into a tensor would have to be copied to the device."""
    return values if len(index) == len(values) else torch.stack([values[i] for i in index])
