"""One batch in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mtl_core.errors import InvalidInputError

__all__ = ["MicroBatches"]


class MicroBatches:
    """Parts of one batch, to be passed one after the other: ``step(problem, MicroBatches(parts), ...)``.

    The step is that of the whole batch, where the parts are of equal size: the Gramian is that of the accumulated
    gradients, not a sum of the parts' Gramians. A loss weighting costs one forward pass without a graph per part, which
    tells the losses of the whole batch, and then one forward and one backward pass per part.

    A task counts over the parts that have it; a part in which no task has a loss is left out.

    Args:
        parts: batches as the problem's losses take them.

    Raises:
        InvalidInputError: there is none.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise InvalidInputError("`parts` must hold at least one batch, got none.")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
