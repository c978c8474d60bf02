"""One engine under ``collect`` and every step: which way the losses are differentiated, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.agreement import together
from mtl_core.collecting.backward import (
    batched_rows,
    feature_rows,
    full_losses,
    head_gradients,
    is_on_host,
    sequential_rows,
)
from mtl_core.collecting.cut import cut_of, heads_above
from mtl_core.collecting.deferred import DeferredStore, through_features, weighted_backward
from mtl_core.collecting.dense import DenseStore
from mtl_core.collecting.finite import check_finite_losses
from mtl_core.collecting.flat import Row
from mtl_core.collecting.graph import Outputs, batches_well, check_attached, is_compiled, reached_by_any
from mtl_core.collecting.heads import HeadGradients
from mtl_core.collecting.sharded import differentiate_sharded, refuse_unshardable
from mtl_core.collecting.streaming import streamed_gramian
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import is_sharded, shard_group
from mtl_core.errors import InvalidInputError
from mtl_core.report import Keep

__all__ = ["differentiate", "shard_ranks_of"]


def shard_ranks_of(parameters: Sequence[Tensor]) -> dist.ProcessGroup | None:
    """The ranks over which parameters are spread; ``None`` where none is a shard."""
    if not is_sharded(parameters):
        return None
    # Parameters that are not sharded beside some that are will be refused, but on all ranks.
    return shard_group([p for p in parameters if is_sharded([p])])


def differentiate(
    outputs: Outputs,
    names: Sequence[str],
    index: Sequence[int],
    shared: tuple[Tensor, ...],
    *,
    features: tuple[Tensor, ...] | None,
    heads: tuple[Tensor, ...],
    chunk_size: int | None,
    keep: Keep,
    retain_graph: bool,
    losses: Tensor | None = None,
    check_heads: bool = False,
) -> TaskGradients:
    """The engine of ``collect``, on checked input and on this rank alone.

    The heads' gradients stay in the result until ``assign_heads``.

    Args:
        outputs: the losses of the present tasks, perhaps scaled.
        names: of all tasks; the rows of those outside ``index`` are zero.
        index: positions of the present tasks among all.
        shared: the shared parameters.
        features: as for ``collect``.
        heads: the heads' parameters.
        chunk_size: as for ``collect``.
        keep: as for ``collect``.
        retain_graph: as for ``collect``.
        losses: the true values ``[m]`` where ``outputs`` are scaled: a scale that has grown makes infinity of a finite
            loss, which is an overflow to be skipped and no fault of the loss.
        check_heads: whether ``host_gramian`` is to look at the heads' gradients too.
    """
    if chunk_size is not None:
        checks.positive_int("chunk_size", chunk_size)
    losses = full_losses(outputs, len(names), index) if losses is None else losses
    shard_ranks = shard_ranks_of(shared)
    sharded = shard_ranks is not None
    # The backward passes of a sharded model are collective: a rank that refused its losses by itself would leave the
    # others waiting in the first of them.
    with together(shard_ranks):
        if is_on_host(losses):
            check_finite_losses(losses, names, index)
        if sharded and (keep != "jacobian" or chunk_size not in (None, 1)):
            raise InvalidInputError(
                f"a sharded model needs keep='jacobian' and chunk_size=1, got {keep!r} and {chunk_size!r}: its "
                "gradients exist on no rank as a whole and are collected by one backward pass per task."
            )
        if sharded:
            refuse_unshardable(outputs, losses, shared)
    present = [names[i] for i in index]
    if sharded:
        return differentiate_sharded(outputs, names, losses, shared, heads, check_heads=check_heads)
    owned: list[list[int]] = []
    if features is not None:
        features = cut_of(features, outputs, shared)
        owned = heads_above(outputs, present, features, shared, heads)
    if keep in ("gramian", "features"):
        store, head_rows = _deferred(outputs, present, index, len(names), shared, features, heads, owned, keep)
        found = HeadGradients(heads, head_rows, index, len(names))
        gradients = TaskGradients(store, losses=losses, tasks=names, present=index, heads=found)
        if check_heads:
            gradients.check_heads()
        return gradients
    notes: tuple[str, ...] = ()
    if chunk_size is not None and chunk_size > 1 and is_compiled(outputs):
        notes = (
            f"chunk_size={chunk_size} became 1: the graph of a compiled model cannot be differentiated in batches",
        )
        chunk_size = 1
    dense = DenseStore(len(names), index, shared)
    if features is not None:
        if chunk_size is None:
            # Batching pays where a pass is mostly calls, not arithmetic. Elsewhere vmap's copies and its slower kernels
            # lose, and operations it cannot batch become a loop within it.
            many = len(index) >= _MANY and losses.device.type == "cpu" and batches_well(features, _TINY)
            chunk_size = len(index) if many else 1
        head_rows = feature_rows(outputs, dense, present, features, shared, heads, owned, chunk_size, retain_graph)
    elif chunk_size is None or chunk_size == 1:
        head_rows = sequential_rows(outputs, dense, present, shared, heads, retain_graph)
    else:
        # Batched gradients are zeros, not None, where a task reaches nothing: a detached loss would pass unseen.
        check_attached(outputs, present, shared)
        head_rows = batched_rows(outputs, dense, shared, heads, chunk_size, retain_graph)
    gradients = TaskGradients(
        dense,
        losses=losses,
        tasks=names,
        present=index,
        heads=HeadGradients(heads, head_rows, index, len(names)),
        notes=notes,
        chunk_size=chunk_size or 1,
    )
    if check_heads:
        gradients.check_heads()
    return gradients


_MANY = 8
_TINY = 1 << 16
"""From so many tasks on, and up to so many entries in one pass of the trunk, batching is the quicker (on CPUs)."""

_BLOCKS = 16
"""Into how many blocks of about equal size the parameters are cut where the Jacobian is not kept."""


def _deferred(
    outputs: Outputs,
    present: Sequence[str],
    index: Sequence[int],
    n_tasks: int,
    shared: tuple[Tensor, ...],
    features: tuple[Tensor, ...] | None,
    heads: tuple[Tensor, ...],
    owned: Sequence[Sequence[int]],
    keep: Keep,
) -> tuple[DeferredStore, list[Row]]:
    """The Gramian alone, and the heads' gradients."""
    if keep == "features":
        if features is None:
            raise InvalidInputError("`keep='features'` needs `features`, got none. Give the trunk's outputs.")
        at_features, head_rows = head_gradients(outputs, present, features, heads, owned)
        found, backward = through_features(at_features, features, index, shared)
        starts: Sequence[Tensor] = features
    else:
        # More blocks hold less, and cut the graph more often.
        block = max(1, sum(p.numel() for p in shared) // _BLOCKS)
        found, head_rows = streamed_gramian(outputs, present, shared, heads, block=block)
        backward = weighted_backward(outputs, index, shared)
        starts = (outputs,) if isinstance(outputs, Tensor) else outputs
    gramian = found
    if len(index) < n_tasks:
        gramian = found.new_zeros(n_tasks, n_tasks)
        places = torch.tensor(list(index), device=found.device)
        gramian[places[:, None], places] = found
    # By the graph, as no gradient of a single parameter is ever seen here.
    touched = reached_by_any(outputs, shared)
    store = DeferredStore(gramian, backward, shared, touched, starts=starts, is_exact=keep == "gramian")
    return store, head_rows
