"""Gradients of embeddings that touch some rows only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mtl_core.collecting.flat import Row, flat_size, widest_dtype
from mtl_core.collecting.rows import GradientRows

__all__ = ["SparseRows"]


class SparseRows:
    r"""One gradient per task and parameter, those of embeddings with ``sparse=True`` by their touched rows.

    For such a parameter the rows that some task touches are found, and every task's gradient is laid out on them: what
    is left out is zero for every task, so that inner products and weighted sums are exact. A vocabulary of millions
    costs what a batch of it costs.

    Args:
        rows: per task its gradients by ``parameters``, ``None`` where it has none.
        parameters: the shared parameters.
        sparse: positions of the parameters that have a sparse gradient in some row.

    Attributes:
        ids: the touched rows of each such parameter, sorted.
    """

    def __init__(self, rows: Sequence[Row | None], parameters: Sequence[Tensor], sparse: Iterable[int]) -> None:
        self.parameters = tuple(parameters)
        self.ids: dict[int, Tensor] = {}
        compact = [None if row is None else list(row) for row in rows]
        shapes = list(self.parameters)
        for j in sorted(sparse):
            if any(row is not None and (g := row[j]) is not None and g.layout == torch.strided for row in compact):
                # Some task has a dense gradient here, by another use of the weight: then all of it is touched.
                for row in compact:
                    if row is not None and (g := row[j]) is not None and g.layout != torch.strided:
                        row[j] = g.to_dense()
                continue
            # A row that was looked up twice has two entries; the assignment below would keep one of them instead of
            # their sum.
            parts = [(row, g.coalesce()) for row in compact if row is not None and (g := row[j]) is not None]
            # Sorted by unique(), which searchsorted needs.
            ids = torch.cat([g.indices()[0] for _, g in parts]).unique()
            for row, g in parts:
                laid_out = torch.zeros(len(ids), *g.shape[1:], dtype=g.dtype, device=g.device)
                laid_out[torch.searchsorted(ids, g.indices()[0])] = g.values()
                row[j] = laid_out
            self.ids[j] = ids
            # Stands in for the parameter where shape, dtype and device are asked for.
            shapes[j] = self.parameters[j].detach()[ids]
        self._compact = GradientRows([None if row is None else tuple(row) for row in compact], shapes)
        self._sizes = [flat_size(shape) for shape in shapes]

    def gramian(self) -> Tensor:
        """The Gramian ``[m, m]`` in float64."""
        return self._compact.gramian()

    def gradients(self, weights: Tensor) -> Iterator[Tensor]:
        """The weighted sum by each parameter, sparse where the gradients were; weights on the CPU."""
        parts = self._compact.combine(weights).split(self._sizes)
        for j, (part, parameter) in enumerate(zip(parts, self.parameters, strict=True)):
            if j not in self.ids:
                yield part.view(parameter.shape)
                continue
            # Back from flat columns to touched rows, [rows, ...].
            values = part.view(-1, *parameter.shape[1:])
            # The ids are sorted and each is there once. Saying so saves a sort, and the check would wait for the
            # device.
            yield torch.sparse_coo_tensor(
                self.ids[j][None], values, parameter.shape, is_coalesced=True, check_invariants=False
            )

    def combine(self, weights: Tensor) -> Tensor:
        """The weighted sum ``[d]``; weights on the CPU."""
        like = self.parameters[0]
        size = sum(flat_size(p) for p in self.parameters)
        vector = torch.zeros(size, dtype=widest_dtype(self.parameters), device=like.device)
        start = 0
        for parameter, gradient in zip(self.parameters, self.gradients(weights), strict=True):
            target = vector[start : start + flat_size(parameter)].view(parameter.shape)
            start += flat_size(parameter)
            if gradient.layout == torch.strided:
                target.copy_(gradient)
            else:
                target[gradient.indices()[0]] = gradient.values()
        return vector
