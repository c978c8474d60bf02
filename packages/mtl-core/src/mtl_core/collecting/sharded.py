"""Task gradients of a model whose parameters are sharded over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mtl_core.collecting.flat import Row, flat_size, widest_dtype
from mtl_core.collecting.graph import Outputs, refuse_detached
from mtl_core.collecting.heads import HeadGradients
from mtl_core.collecting.scattered import PartialStore
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import is_sharded, local_part, mean_over_tasks_present_, shard_group
from mtl_core.errors import InvalidInputError, InvalidJacobianError

__all__ = ["ShardedStore", "differentiate_sharded", "refuse_unshardable"]


class ShardedStore(PartialStore):
    """Gradients of a model whose parameters are sharded over ranks; each rank holds the columns of its own shards.

    Vectors are this rank's part of ``[d]`` throughout.
    """

    @cached_property
    def width(self) -> int:
        """Number of shared parameter entries on this rank."""
        return sum(flat_size(local_part(p)) for p in self.parameters)

    def combine(self, weights: Tensor, gramian: Tensor | None) -> Tensor:
        """This rank's part of the combination."""
        return self._part(weights, gramian)

    def write(self, vector: Tensor, *, accumulate: bool = False) -> None:
        """Write this rank's part of an update into the parameters' sharded ``.grad``."""
        if vector.shape != (self.width,):
            raise InvalidJacobianError(
                f"`vector` must have shape ({self.width},), this rank's part of the update, got {tuple(vector.shape)}."
            )
        start = 0
        for k, parameter in enumerate(self.parameters):
            local = local_part(parameter)
            part = vector[start : start + local.numel()].view(local.shape).to(local.dtype)
            start += local.numel()
            if k in self.untouched:
                parameter.grad = parameter.grad if accumulate else None
                continue
            found = _like(parameter, part)
            parameter.grad = found if parameter.grad is None or not accumulate else parameter.grad + found


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    """A rank's part of a gradient in the form of its parameter."""
    from torch.distributed.tensor import DTensor

    sharded: Any = parameter
    # The check would be a collective operation for each parameter, over shapes that are known to agree.
    return DTensor.from_local(
        part,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def refuse_unshardable(outputs: Outputs, losses: Tensor, shared: Sequence[Tensor]) -> None:
    """Make sure that there is a backward pass for each task on every rank; to be agreed on before the first.

    Raises:
        InvalidInputError: a shared parameter is not sharded, or a task is absent.
    """
    loose = [k for k, p in enumerate(shared) if not is_sharded([p])]
    if loose:
        raise InvalidInputError(
            f"`shared` must be sharded as a whole or not at all, got {len(loose)} of {len(shared)} parameters that "
            "are not. Apply fully_shard to the whole model."
        )
    if len(losses) != len(outputs):
        raise InvalidInputError(
            f"every task must be present where the model is sharded, got {len(outputs)} of {len(losses)}: all ranks "
            "must go backward together."
        )


def differentiate_sharded(
    outputs: Outputs,
    names: Sequence[str],
    losses: Tensor,
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    *,
    check_heads: bool = False,
) -> TaskGradients:
    """One backward pass per task through a model under ``fully_shard``.

    The sharding's own hooks average each task's gradient over the ranks and leave it, sharded, in ``.grad``, where it
    is read; a differentiation that does not go through them would see one rank's gradients only. Whatever ``.grad``
    held is put back.

    Raises:
        DetachedLossError: a loss reaches no shared parameter.
    """
    group = shard_group(shared)
    wanted = [*shared, *heads]
    # By reference: backward() puts new tensors in place of None and so does not write into these.
    before = [p.grad for p in wanted]
    # Shards of a rank may be empty, where a parameter has fewer rows than there are ranks; they are columns of width 0.
    local = [local_part(p) for p in shared]
    matrix = torch.zeros(len(names), sum(p.numel() for p in local), dtype=widest_dtype(shared), device=local[0].device)
    head_rows: list[Row] = []
    detached: list[str] = []
    touched = [False] * len(local)
    try:
        for k in range(len(names)):
            # Backward adds to .grad: without clearing, each task's gradient would hold those of the tasks before it.
            for p in wanted:
                p.grad = None
            # Without `inputs=`: the leaves of this graph are the gathered parameters, whose gradients the sharding's
            # hooks reduce and put into .grad of the shards.
            torch.autograd.backward([outputs[k]], retain_graph=k < len(names) - 1)
            # Noted, and raised after the loop: a rank that left it alone would let the others wait in the next task's
            # hooks.
            if all(p.grad is None for p in shared):
                detached.append(names[k])
            start = 0
            for j, (p, part) in enumerate(zip(shared, local, strict=True)):
                if p.grad is not None:
                    touched[j] = True
                    matrix[k, start : start + part.numel()] = local_part(p.grad).reshape(-1)
                start += part.numel()
            head_rows.append(tuple(p.grad for p in heads))
    finally:
        # Also after an error, which must leave .grad as it was before the step.
        for p, old in zip(wanted, before, strict=True):
            p.grad = old
    refuse_detached(detached, "shared parameters")
    mean, counts = mean_over_tasks_present_(losses, range(len(names)), group)
    gradients = TaskGradients(
        ShardedStore(matrix, shared, group, touched),
        losses=mean,
        tasks=names,
        present=range(len(names)),
        heads=HeadGradients(heads, head_rows, range(len(names)), len(names)),
    )
    if check_heads and heads:
        gradients.check_heads(shards=group)
    gradients.counts = counts  # the hooks have averaged the heads' gradients already, so that `group` stays None
    return gradients
