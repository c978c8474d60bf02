"""Where gradients go as they come."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_core.collecting.flat import Row, empty_jacobian, flatten_block_into, flatten_into
from mtl_core.collecting.rows import GradientRows

__all__ = ["Store"]

_SMALL = 1 << 15
"""Up to this many parameter entries, a matrix is quicker to have than gradients one by one."""


class Store:
    """Takes gradients as they come: into a matrix where they are small or of mixed kinds, as they are elsewhere.

    Args:
        n_tasks: the number of rows; absent tasks keep a row of zeros.
        index: the row of each present task.
        shared: the parameters.
    """

    def __init__(self, n_tasks: int, index: Sequence[int], shared: tuple[Tensor, ...]) -> None:
        self.rows: list[Row | None] = [None] * n_tasks
        self.matrix: Tensor | None = None
        self.touched = [False] * len(shared)
        self._index = list(index)
        self._shared = shared
        if sum(p.numel() for p in shared) <= _SMALL or not GradientRows.can_hold((), shared):
            self._to_matrix()

    def row(self, k: int, row: Row) -> None:
        """Take the gradient of the ``k``-th present task by each parameter, ``None`` where it has none."""
        for j, gradient in enumerate(row):
            self.touched[j] |= gradient is not None
        if self.matrix is None and not GradientRows.can_hold((row,), self._shared):
            self._to_matrix()
        if self.matrix is None:
            self.rows[self._index[k]] = row
        else:
            flatten_into(self.matrix[self._index[k]], row, self._shared)

    def block(self, start: int, count: int, found: Row) -> None:
        """Take the gradients of ``count`` present tasks from the ``start``-th on, side by side in a first dimension."""
        places = self._index[start : start + count]
        side_by_side = places == list(range(places[0], places[0] + count))
        if self.matrix is None or not side_by_side or any(g is not None and g.is_sparse for g in found):
            for k in range(count):
                self.row(start + k, tuple(None if g is None else g[k] for g in found))
            return
        for j, gradient in enumerate(found):
            self.touched[j] |= gradient is not None
        flatten_block_into(self.matrix[places[0] : places[0] + count], found, self._shared)

    def _to_matrix(self) -> None:
        self.matrix = empty_jacobian(len(self.rows), self._shared)
        for i, row in enumerate(self.rows):
            if row is not None:
                flatten_into(self.matrix[i], row, self._shared)
        for i in set(range(len(self.rows))).difference(self._index):
            self.matrix[i].zero_()
        self.rows = [None] * len(self.rows)
