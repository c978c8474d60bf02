"""Vector-Jacobian products from task losses: rows of the Jacobian, one task after the other or several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtl_core.collecting.flat import Row
from mtl_core.collecting.graph import Outputs, Root, refuse_detached, roots_of
from mtl_core.errors import InvalidInputError

__all__ = [
    "batched_rows",
    "feature_rows",
    "full_losses",
    "head_gradients",
    "is_on_host",
    "sequential_rows",
]


class RowStore(Protocol):
    """Where the gradients of each task are stored as soon as they are computed."""

    def row(self, k: int, row: Row) -> None:
        """Take the gradient of the ``k``-th present task by each parameter."""

    def block(self, start: int, count: int, found: Row) -> None:
        """Take those of ``count`` tasks from the ``start``-th on, side by side in a first dimension."""


def is_on_host(values: Tensor) -> bool:
    """Whether values can be read without waiting for a device; then they are checked as soon as they are computed."""
    return values.device.type == "cpu"


def _grad(root: Root, inputs: Sequence[Tensor], retain_graph: bool) -> Row:
    if root is None:
        return (None,) * len(inputs)
    # An unused input is a parameter that the task does not touch, which is no error: its gradient counts as zero. The
    # two branches do the same; torch declares sequences of edges or of tensors, not of either.
    if isinstance(root, GradientEdge):
        return torch.autograd.grad([root], inputs, retain_graph=retain_graph, allow_unused=True)
    if isinstance(root, Tensor):
        return torch.autograd.grad([root], inputs, retain_graph=retain_graph, allow_unused=True)
    # Seeding the whole tensor: indexing it first would add an operation to the graph for every task.
    seed = torch.zeros_like(root.losses)
    seed[root.i] = 1.0
    return torch.autograd.grad([root.losses], inputs, [seed], retain_graph=retain_graph, allow_unused=True)


def sequential_rows(
    outputs: Outputs,
    store: RowStore,
    names: Sequence[str],
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    retain_graph: bool,
) -> list[Row]:
    """Store each task's gradient, by a backward pass of its own; return the heads' gradients per task."""
    head_rows: list[Row] = []
    detached: list[str] = []
    for k, root in enumerate(roots_of(outputs)):
        # The tasks' graphs share the trunk, so that only the last pass may free it.
        found = _grad(root, (*shared, *heads), retain_graph or k < len(names) - 1)
        row = found[: len(shared)]
        if not any(g is not None for g in row):
            # All detached tasks are named in one error, after the loop.
            detached.append(names[k])
            continue
        store.row(k, row)
        head_rows.append(found[len(shared) :])
    refuse_detached(detached, "shared parameters")
    return head_rows


def batched_rows(
    outputs: Outputs,
    store: RowStore,
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    chunk_size: int,
    retain_graph: bool,
) -> list[Row]:
    """As ``sequential_rows``, ``chunk_size`` tasks at a time by batched vector-Jacobian products."""
    # Batching needs one output with a row of seeds a task; here each pass runs all heads, with zeros for other tasks'.
    losses = outputs if isinstance(outputs, Tensor) else torch.stack(outputs)
    # Row i seeds loss i alone: the product with it is the i-th row of the Jacobian.
    seeds = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    head_rows: list[Row] = []
    for start in range(0, len(losses), chunk_size):
        part = seeds[start : start + chunk_size]
        keep = retain_graph or start + chunk_size < len(losses)
        found = _vjp([losses], (*shared, *heads), [part], keep)
        store.block(start, len(part), found[: len(shared)])
        own = found[len(shared) :]
        head_rows += [tuple(None if g is None else g[k] for g in own) for k in range(len(part))]
    return head_rows


def head_gradients(
    outputs: Outputs,
    names: Sequence[str],
    features: Sequence[Tensor],
    heads: Sequence[Tensor],
    owned: Sequence[Sequence[int]],
) -> tuple[list[Row], list[Row]]:
    """Each task's gradient by the features and by the heads' parameters; the graph is kept.

    Args:
        outputs: the losses.
        names: the tasks' names.
        features: the trunk's outputs.
        heads: the heads' parameters.
        owned: which of them each loss depends on; naming all of them to every task's pass would cost m² look-ups.

    Raises:
        DetachedLossError: a loss does not depend on the features.
    """
    at_features: list[Row] = []
    head_rows: list[Row] = []
    detached: list[str] = []
    for name, root, places in zip(names, roots_of(outputs), owned, strict=True):
        # Kept, since tasks may have operations above the features in common.
        found = _grad(root, (*features, *[heads[k] for k in places]), True)
        at_features.append(found[: len(features)])
        if not any(g is not None for g in at_features[-1]):
            detached.append(name)
        row: list[Tensor | None] = [None] * len(heads)
        for k, gradient in zip(places, found[len(features) :], strict=True):
            row[k] = gradient
        head_rows.append(tuple(row))
    refuse_detached(detached, "features")
    return at_features, head_rows


def feature_rows(
    outputs: Outputs,
    store: RowStore,
    names: Sequence[str],
    features: Sequence[Tensor],
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    owned: Sequence[Sequence[int]],
    chunk_size: int,
    retain_graph: bool,
) -> list[Row]:
    """As ``sequential_rows``, but each head once, down to the features, and then ``chunk_size`` tasks at a time."""
    at_features, head_rows = head_gradients(outputs, names, features, heads, owned)
    for start in range(0, len(names), chunk_size):
        part = at_features[start : start + chunk_size]
        keep = retain_graph or start + chunk_size < len(names)
        # A feature that none of these tasks uses would be differentiated with zeros only. Without batching, which not
        # every operation allows, and which costs time where there is one task.
        if len(part) == 1:
            pairs = [(z, g) for z, g in zip(features, part[0], strict=True) if g is not None]
            before, own = zip(*pairs, strict=True)
            row = torch.autograd.grad(before, shared, own, retain_graph=keep, allow_unused=True)
            store.row(start, row)
            continue
        # In a batch every seed needs a value, also for a task that does not use the feature.
        used = [j for j in range(len(features)) if any(row[j] is not None for row in part)]
        starts = [features[j] for j in used]
        seeds = [
            torch.stack([torch.zeros_like(features[j]) if (g := row[j]) is None else g for row in part]) for j in used
        ]
        store.block(start, len(part), _vjp(starts, shared, seeds, keep))
    return head_rows


def _vjp(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], retain_graph: bool) -> Row:
    """Several vector-Jacobian products at once, one per entry of the seeds' first dimension.

    Raises:
        InvalidInputError: an operation cannot be differentiated for several seeds at once.
    """
    try:
        return torch.autograd.grad(
            outputs, inputs, seeds, retain_graph=retain_graph, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError as error:
        # Anything else, such as an error in a backward function of the user's, is not ours to explain.
        if not any(sign in str(error).lower() for sign in _NOT_BATCHED):
            raise
        first = str(error).strip().splitlines()[0]
        raise InvalidInputError(
            f"`chunk_size` must be 1 for an operation that cannot be differentiated in batches, got {len(seeds[0])} "
            f"and: {first} Leave chunk_size out, or give the operation a vmap rule (generate_vmap_rule=True)."
        ) from error


_NOT_BATCHED = ("vmap", "batching rule", "batched tensor", "batchedtensor", "functorch")
"""Words by which an error of batching is told from other errors; torch has no type of its own for it."""


def full_losses(outputs: Outputs, n_tasks: int, index: Sequence[int]) -> Tensor:
    """The losses ``[m]``, detached, with NaN for tasks outside ``index``."""
    # detach() shares memory with the user's tensor, which may be written to later; a stack is a copy.
    values = outputs.detach().clone() if isinstance(outputs, Tensor) else torch.stack(outputs).detach()
    if len(index) == n_tasks:
        return values
    return values.new_full((n_tasks,), float("nan")).index_put((torch.tensor(index, device=values.device),), values)
