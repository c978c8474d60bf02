"""Gradients that are kept: as a matrix, as autograd's own tensors, or as rows of an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.collecting.flat import Row, added_rows, empty_jacobian, flatten_block_into, flatten_into
from mtl_core.collecting.gramian import cancels, gramian_of, weighted_sum
from mtl_core.collecting.rows import GradientRows
from mtl_core.collecting.sparse import SparseRows
from mtl_core.collecting.store import GradientStore
from mtl_core.collecting.writing import put
from mtl_core.distributed import sum_over_ranks_
from mtl_core.errors import InvalidJacobianError

__all__ = ["DenseStore"]


_SMALL = 1 << 15
"""Up to this many parameter entries, one copy into a matrix is faster than work on many single gradients."""


class DenseStore(GradientStore):
    """Copies gradients into a matrix where they are small or of mixed dtypes, and keeps autograd's tensors elsewhere.

    Gradients of embeddings with ``sparse=True`` stay rows until somebody asks for the matrix.

    Args:
        n_tasks: the number of rows; absent tasks keep a row of zeros.
        index: the row of each present task.
        parameters: the shared parameters.
    """

    def __init__(self, n_tasks: int, index: Sequence[int], parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, n_tasks, [False] * len(parameters))
        self._index = list(index)
        self._rows: list[Row | None] = [None] * n_tasks
        self._matrix: Tensor | None = None
        self._sparse: set[int] = set()
        self._view: GradientRows | SparseRows | None = None
        self._ids: dict[int, Tensor] = {}
        # Mixed or half-precision dtypes need the conversion that laying out a matrix does; the rows are read as they
        # are.
        if self.width <= _SMALL or not GradientRows.can_hold((), parameters):
            self._to_matrix()

    @classmethod
    def of(cls, matrix: Tensor, parameters: Sequence[Tensor], touched: Sequence[bool] | None = None) -> DenseStore:
        """A store of a Jacobian ``[m, d]`` that is there already."""
        # Past the constructor, which would lay out a second matrix for small parameters.
        found = cls.__new__(cls)
        GradientStore.__init__(found, parameters, len(matrix), touched)
        found._index, found._rows = list(range(len(matrix))), [None] * len(matrix)
        found._sparse, found._view, found._ids, found._matrix = set(), None, {}, matrix
        if matrix.shape[1:] != (found.width,):
            raise InvalidJacobianError(
                f"`matrix` must have one column per shared parameter entry, {found.width}, got shape "
                f"{tuple(matrix.shape)}."
            )
        return found

    def row(self, k: int, row: Row) -> None:
        """Take the gradient of the ``k``-th present task by each parameter, ``None`` where it has none."""
        touched = self.touched
        for j, gradient in enumerate(row):
            if gradient is not None:
                touched[j] = True
                if gradient.layout is not torch.strided:
                    self._sparse.add(j)
        # One gradient of another dtype or layout is enough: from here on, and backwards, all rows go into the matrix.
        if self._matrix is None and not GradientRows.can_hold((row,), self.parameters):
            self._to_matrix()
        if self._matrix is None:
            self._rows[self._index[k]] = row
        else:
            flatten_into(self._matrix[self._index[k]], row, self.parameters)
            if self._sparse:
                self._note_ids(row)

    def block(self, start: int, count: int, found: Row) -> None:
        """Take the gradients of ``count`` present tasks from the ``start``-th on, side by side in a first dimension."""
        places = self._index[start : start + count]
        side_by_side = places == list(range(places[0], places[0] + count))
        # With absent tasks in between, a block is no slice of the matrix; sparse gradients have no dense first
        # dimension.
        if self._matrix is None or not side_by_side or any(g is not None and g.is_sparse for g in found):
            for k in range(count):
                self.row(start + k, tuple(None if g is None else g[k] for g in found))
            return
        for j, gradient in enumerate(found):
            self.touched[j] |= gradient is not None
        flatten_block_into(self._matrix[places[0] : places[0] + count], found, self.parameters)

    def _note_ids(self, row: Row) -> None:
        """Remember which rows of sparse parameters were touched, where the gradients themselves become dense."""
        for j in self._sparse:
            gradient = row[j]
            if gradient is not None and gradient.layout != torch.strided:
                fresh = gradient.coalesce().indices()[0]
                self._ids[j] = fresh if j not in self._ids else torch.cat([self._ids[j], fresh]).unique()

    def _to_matrix(self) -> Tensor:
        matrix = empty_jacobian(self.n_tasks, self.width, self.dtype, self.parameters[0].device)
        for i, row in enumerate(self._rows):
            if row is not None:
                flatten_into(matrix[i], row, self.parameters)
                self._note_ids(row)
        # The matrix is not initialised. Rows of present tasks are written in full; those of absent tasks are cleared
        # here.
        for i in set(range(self.n_tasks)).difference(self._index):
            matrix[i].zero_()
        self._rows, self._view, self._matrix = [None] * self.n_tasks, None, matrix
        return matrix

    @property
    def matrix(self) -> Tensor:
        """The Jacobian ``[m, d]``."""
        return self._to_matrix() if self._matrix is None else self._matrix

    @property
    def _as_rows(self) -> GradientRows | SparseRows:
        if self._view is None:
            if self._sparse:
                self._view = SparseRows(self._rows, self.parameters, self._sparse)
                self._ids = self._view.ids
            else:
                self._view = GradientRows(self._rows, self.parameters)
        return self._view

    def gramian(self) -> Tensor:
        """The Gramian ``[m, m]`` in float64."""
        return gramian_of(self._matrix) if self._matrix is not None else self._as_rows.gramian()

    def combine(self, weights: Tensor, gramian: Tensor | None) -> Tensor:
        """The weighted sum ``[d]``."""
        on_host = weights.device.type == "cpu"
        # Rows are summed in their own dtype. Where terms cancel, only the matrix has a sum in float64; where the
        # weights are on the device, reading them as numbers would wait for it.
        if self._matrix is None and on_host and not cancels(weights, gramian, self.dtype):
            return self._as_rows.combine(weights)
        return weighted_sum(self.matrix, weights, gramian)

    def write_combination(self, weights: Tensor, gramian: Tensor | None, factor: Tensor | None) -> None:
        """Write the weighted sum; gradients that came as rows of an embedding are written as such."""
        if self._matrix is not None or not self._sparse or cancels(weights.cpu(), gramian, self.dtype):
            super().write_combination(weights, gramian, factor)
            return
        rows = self._as_rows
        assert isinstance(rows, SparseRows)
        # The factor goes into the m weights instead of one more pass over the gradients.
        scaled = weights if factor is None else weights * factor.to(weights)
        for k, (parameter, gradient) in enumerate(zip(self.parameters, rows.gradients(scaled.cpu()), strict=True)):
            if self.touched[k]:
                put(parameter, gradient, accumulate=False)
            else:
                parameter.grad = None

    def write(self, vector: Tensor, *, accumulate: bool = False) -> None:
        """Write an update ``[d]``; what lies in the touched rows of an embedding only is written as those rows."""
        super().write(vector, accumulate=accumulate)
        if self._matrix is None and self._sparse:
            self._ids = self._as_rows.ids if isinstance(self._as_rows, SparseRows) else {}
        # What was there before may be non-zero outside of the touched rows.
        if accumulate:
            return
        for j, ids in self._ids.items():
            parameter = self.parameters[j]
            whole = parameter.grad
            if whole is None:
                continue
            values = whole[ids]
            # An update that was changed after the weighted sum may have entries outside of these rows: written as rows,
            # they would be lost.
            if int(whole.count_nonzero()) == int(values.count_nonzero()):
                parameter.grad = torch.sparse_coo_tensor(
                    ids[None], values, whole.shape, is_coalesced=True, check_invariants=False
                )

    def forget_rows(self) -> None:
        """Write dense gradients from now on, e.g. because ranks differ in the rows they touch."""
        self._ids, self._sparse = {}, set()

    @property
    def _is_sparse(self) -> bool:
        """Whether rows of some embedding are all that is held of its gradients."""
        return self._matrix is None and bool(self._sparse)

    def add(self, other: DenseStore) -> None:
        """Add the gradients of another batch, which is used up by it."""
        self.touched = [a or b for a, b in zip(self.touched, other.touched, strict=True)]
        if self._is_sparse and other._is_sparse:
            self._index = sorted({*self._index, *other._index})
            self._rows = [
                b if a is None else a if b is None else added_rows(a, b)
                for a, b in zip(self._rows, other._rows, strict=True)
            ]
            self._sparse |= other._sparse
            self._view = None
            return
        # In place: two Jacobians of a large model are one more than most memories hold. Both notes of touched rows are
        # complete only after both matrices were laid out.
        self.matrix.add_(other.matrix)
        for j, ids in other._ids.items():
            self._ids[j] = ids if j not in self._ids else torch.cat([self._ids[j], ids]).unique()
        self._sparse |= other._sparse

    def scale_tasks(self, factors: Tensor) -> None:
        """Multiply each task's gradient by a number of its own, ``[m]``."""
        if self._is_sparse:
            self._scale_rows(factors.tolist())
        else:
            matrix = self.matrix
            matrix.mul_(factors.to(matrix).unsqueeze(1))

    def rescale(self, factor: Tensor) -> None:
        """Multiply the gradients by a positive number."""
        if self._is_sparse:
            self._scale_rows([factor] * self.n_tasks)
        else:
            # By way of the matrix: the rows are autograd's own tensors, of which one may stand for several parameters
            # and would be scaled twice.
            self.matrix.mul_(factor)

    def _scale_rows(self, factors: Sequence[Tensor | float]) -> None:
        self._view = None
        self._rows = [
            None if row is None else tuple(None if g is None else g * _as_number(factor, g) for g in row)
            for row, factor in zip(self._rows, factors, strict=True)
        ]

    def average(self, share: Tensor, group: dist.ProcessGroup) -> None:
        """Replace the gradients by their sums over ranks, times a factor ``[m]``."""
        # First the matrix, which still needs the record of sparse rows. Ranks touch different rows, so the sums are
        # dense.
        matrix = self.matrix
        self.forget_rows()
        sum_over_ranks_([matrix], group)
        matrix.mul_(share.to(matrix.dtype).unsqueeze(1))


def _as_number(factor: Tensor | float, gradient: Tensor) -> Tensor | float:
    return factor.to(gradient.dtype) if isinstance(factor, Tensor) else factor
