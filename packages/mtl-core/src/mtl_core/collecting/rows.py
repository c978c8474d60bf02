"""Task gradients kept as the tensors that autograd returned, without a copy into one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtl_core.collecting.flat import Row
from mtl_core.collecting.gramian import add_product_

__all__ = ["GradientRows"]

_COLUMNS = 1 << 15
"""Columns that are converted to float64 at a time: for a few tasks they fit a core's cache."""


class GradientRows:
    """One gradient per task and parameter, nothing copied.

    Laying gradients side by side in a matrix moves as many bytes as some layers' backward passes. The Gramian and
    weighted sums do without.

    Args:
        rows: per task its gradients by ``parameters``, ``None`` where it has none; dense, real, of one dtype.
        parameters: the shared parameters.
    """

    def __init__(self, rows: Sequence[Row | None], parameters: Sequence[Tensor]) -> None:
        self.parameters = tuple(parameters)
        self.rows = [
            None if row is None else [None if g is None else g.detach().reshape(-1) for g in row] for row in rows
        ]

    @staticmethod
    def can_hold(rows: Sequence[Row], parameters: Sequence[Tensor]) -> bool:
        """Whether gradients are of the plain kind that needs no conversion: float32 or float64, all alike."""
        dtype = parameters[0].dtype
        if dtype not in (torch.float32, torch.float64) or any(p.dtype != dtype for p in parameters):
            return False
        plain = (torch.strided, torch.sparse_coo)
        return all(g is None or (g.layout in plain and g.dtype == dtype) for row in rows for g in row)

    def gramian(self) -> Tensor:
        """The Gramian ``[m, m]`` in float64."""
        count = len(self.rows)
        like = self.parameters[0]
        gramian = torch.zeros(count, count, dtype=torch.float64, device=like.device)
        buffer = torch.empty(count * _COLUMNS, dtype=torch.float64, device=like.device)
        for block in self._blocks():
            width = sum(stop - start for _, start, stop in block)
            part = buffer[: count * width].view(count, width)
            for target, row in zip(part, self.rows, strict=True):
                pieces = [None if row is None or (g := row[k]) is None else g[a:b] for k, a, b in block]
                places = target.split([b - a for _, a, b in block])
                # The buffer is used again for every block and still holds the last one.
                for place, piece in zip(places, pieces, strict=True):
                    if piece is None:
                        place.zero_()
                there = [(place, piece) for place, piece in zip(places, pieces, strict=True) if piece is not None]
                if there:
                    # One call for all pieces of a block, since many are as small as a bias.
                    torch._foreach_copy_([place for place, _ in there], [piece for _, piece in there])
            # Converted block by block: all rows in double precision would take twice the memory of the gradients.
            add_product_(gramian, part)
        # A product need not round both halves alike; solvers rely on exact symmetry.
        return (gramian + gramian.T).mul_(0.5)

    def _blocks(self) -> Iterator[list[tuple[int, int, int]]]:
        """Parameters, or stretches of them, that fill the buffer together: parameter, start, stop."""
        block: list[tuple[int, int, int]] = []
        room = _COLUMNS
        for k, parameter in enumerate(self.parameters):
            start, size = 0, parameter.numel()
            while start < size:
                stop = min(size, start + room)
                block.append((k, start, stop))
                room -= stop - start
                start = stop
                if not room:
                    yield block
                    block, room = [], _COLUMNS
        if block:
            yield block

    def combine(self, weights: Tensor) -> Tensor:
        """The weighted sum ``[d]``; weights on the CPU."""
        like = self.parameters[0]
        sizes = [p.numel() for p in self.parameters]
        vector = torch.empty(sum(sizes), dtype=like.dtype, device=like.device)
        parts = vector.split(sizes)
        written = [False] * len(parts)
        for weight, row in zip(weights.tolist(), self.rows, strict=True):
            there = [k for k, g in enumerate(row or ()) if g is not None]
            fresh = [k for k in there if not written[k]]
            again = [k for k in there if written[k]]
            if row is None or not there:
                continue
            # The first task that has a gradient writes, later ones add: no pass over the vector to fill it with zeros.
            if fresh:
                targets = [parts[k] for k in fresh]
                torch._foreach_copy_(targets, [g for k in fresh if (g := row[k]) is not None])
                torch._foreach_mul_(targets, weight)
            if again:
                found = [g for k in again if (g := row[k]) is not None]
                torch._foreach_add_([parts[k] for k in again], found, alpha=weight)
            for k in fresh:
                written[k] = True
        # Uninitialised memory, where no task has a gradient.
        for part, done in zip(parts, written, strict=True):
            if not done:
                part.zero_()
        return vector
