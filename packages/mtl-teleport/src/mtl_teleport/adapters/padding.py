"""Rows of embeddings that stand for padding, which training leaves as they are and a move must, too."""

from __future__ import annotations

from torch import Tensor, nn

from mtl_core import Problem

__all__ = ["padding_rows", "without_rows"]


def padding_rows(problem: Problem) -> dict[str, int]:
    """The row of each trainable parameter, shared or of a head, that is padding and nothing else, by its name.

    Of a weight that another layer uses as well, as an output layer tied to its embedding, that row is trained.
    """
    users: dict[int, set[int | None]] = {}
    for _, module in problem.listing.modules:
        own = module if isinstance(module, nn.Embedding | nn.EmbeddingBag) else None
        for key, parameter in module._parameters.items():
            row = own.padding_idx if own is not None and key == "weight" else None
            users.setdefault(id(parameter), set()).add(row)
    alone = {key: rows.pop() for key, rows in users.items() if len(rows) == 1}
    parameters = {**problem.named_trainable, **problem.named_shared}
    found = {name: alone.get(id(parameter)) for name, parameter in parameters.items()}
    return {name: row for name, row in found.items() if row is not None}


def without_rows(step: Tensor, row: int | None) -> Tensor:
    """A displacement without that of the padding row, if there is one."""
    if row is None:
        return step
    # Multiplied, and not written over, so that gradients through it reach the other rows only, to any order.
    kept = step.new_ones((len(step), *[1] * (step.ndim - 1)))
    kept[row] = 0.0
    return step * kept
