"""Task gradients of which each rank holds some columns only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.collecting.flat import Row, flat_size, widest_dtype
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.graph import Outputs, refuse_detached
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import is_sharded, mean_over_tasks_present_, shard_group, sum_over_ranks_
from mtl_core.errors import InvalidInputError, InvalidJacobianError

__all__ = ["ScatteredGradients", "ShardedGradients", "differentiate_sharded", "scatter"]


class _PartialGradients(TaskGradients):
    """The columns ``matrix`` of this rank; the Gramian is the sum of all ranks' parts."""

    columns: dist.ProcessGroup

    @cached_property
    def gramian(self) -> Tensor:
        r"""The Gramian of the whole Jacobian, :math:`\sum_r J_r J_r^\top`, the same on every rank."""
        gramian = gramian_of(self.matrix)
        sum_over_ranks_([gramian], self.columns)
        return gramian

    @property
    def mean(self) -> Tensor:
        """This rank's columns of the mean gradient."""
        return self.matrix.mean(dim=0)


class ScatteredGradients(_PartialGradients):
    """Gradients averaged over ranks of which each rank keeps an equal part of the columns.

    Made by ``collect(..., keep="scattered", group=group)``. A reduction to parts and one gathering of the update move
    about half the bytes that averaging the whole Jacobian on every rank does, and each rank keeps ``1/n`` of it.
    """

    def __init__(self, full: TaskGradients, group: dist.ProcessGroup) -> None:
        self.__dict__.update(full.__dict__)
        self.__dict__.pop("gramian", None)
        self.__dict__.pop("host_gramian", None)
        self.columns = group
        self._width = full.matrix.shape[1]
        share = self.average_losses(group)
        self._rows = None
        self._matrix = scatter(full.matrix, group).mul_(share.to(full.dtype).unsqueeze(1))

    @property
    def n_parameters(self) -> int:
        """Number ``d`` of shared parameter entries of the whole."""
        return self._width

    def combine(self, weights: Tensor) -> Tensor:
        """The combination ``[d]``, gathered from all ranks' parts."""
        part = self._check_weights(weights) @ self.matrix
        size = dist.get_world_size(self.columns)
        whole = part.new_empty(size * len(part))
        dist.all_gather_into_tensor(whole, part, group=self.columns)
        return whole[: self._width]


def scatter(matrix: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum ``[m, d]`` over ranks and keep this rank's columns ``[m, ceil(d / n)]``, zero where there are no more."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    n_tasks, width = matrix.shape
    part = -(-width // size)
    padded = torch.nn.functional.pad(matrix, (0, part * size - width))
    parts = padded.view(n_tasks, size, part).transpose(0, 1).contiguous()
    if dist.get_backend(group) == "gloo":
        # Not every build of gloo has a reduce-scatter; one reduction per rank moves the same bytes.
        for other in range(size):
            dist.reduce(parts[other], dst=dist.get_global_rank(group, other), group=group)
        return parts[rank].clone()
    found = torch.empty_like(parts[rank])
    dist.reduce_scatter_tensor(found, parts, group=group)
    return found


class ShardedGradients(_PartialGradients):
    """Gradients of a model whose parameters are sharded over ranks; each rank holds the columns of its own shards.

    Vectors are this rank's part of ``[d]`` throughout: ``matrix``, ``mean``, ``combine`` and ``assign``.
    """

    def __init__(
        self,
        matrix: Tensor,
        parameters: Sequence[Tensor],
        group: dist.ProcessGroup,
        *,
        losses: Tensor,
        counts: Tensor,
        tasks: Sequence[str],
        present: Sequence[int],
        heads: Sequence[Tensor],
        head_gradients: Sequence[Row],
    ) -> None:
        self._matrix = matrix
        self._rows = None
        self.columns = group
        self.notes = ()
        self.untouched = ()
        self.parameters = tuple(parameters)
        self.losses = losses
        self.tasks = tuple(tasks)
        self.present = tuple(present)
        self.group = None  # the sharded heads' gradients are averaged already
        self.counts = counts
        self._heads = tuple(heads)
        self._head_gradients = tuple(tuple(row) for row in head_gradients) or tuple(() for _ in self.present)

    @property
    def n_parameters(self) -> int:
        """Number of shared parameter entries on this rank."""
        return sum(flat_size(_local(p)) for p in self.parameters)

    def assign(self, vector: Tensor) -> None:
        """Write this rank's part of an update into the parameters' sharded ``.grad``."""
        if vector.shape != (self.n_parameters,):
            raise InvalidJacobianError(
                f"`vector` must have shape ({self.n_parameters},), this rank's part of the update, got "
                f"{tuple(vector.shape)}."
            )
        start = 0
        for parameter in self.parameters:
            local = _local(parameter)
            part = vector[start : start + local.numel()].view(local.shape).to(local.dtype)
            start += local.numel()
            parameter.grad = _like(parameter, part)


def _local(parameter: Tensor) -> Tensor:
    sharded: Any = parameter
    local: Tensor = sharded.to_local() if is_sharded([parameter]) else parameter
    return local


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    """A rank's part of a gradient in the form of its parameter."""
    from torch.distributed.tensor import DTensor

    sharded: Any = parameter
    return DTensor.from_local(
        part,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def differentiate_sharded(
    outputs: Outputs,
    names: Sequence[str],
    losses: Tensor,
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
) -> ShardedGradients:
    """One backward pass per task through a model under ``fully_shard``.

    The sharding's own hooks average each task's gradient over the ranks and leave it, sharded, in ``.grad``, where it
    is read; a differentiation that does not go through them would see one rank's gradients only. Whatever ``.grad``
    held is put back.

    Raises:
        InvalidInputError: a shared parameter is not sharded, or a task is absent.
        DetachedLossError: a loss reaches no shared parameter.
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
    group = shard_group(shared)
    wanted = [*shared, *heads]
    before = [p.grad for p in wanted]
    local = [_local(p) for p in shared]
    matrix = torch.zeros(len(names), sum(p.numel() for p in local), dtype=widest_dtype(shared), device=local[0].device)
    head_rows: list[Row] = []
    detached: list[str] = []
    for k in range(len(names)):
        for p in wanted:
            p.grad = None
        torch.autograd.backward([outputs[k]], retain_graph=k < len(names) - 1)
        if all(p.grad is None for p in shared):
            detached.append(names[k])
        start = 0
        for p, part in zip(shared, local, strict=True):
            if p.grad is not None:
                matrix[k, start : start + part.numel()] = _local(p.grad).reshape(-1)
            start += part.numel()
        head_rows.append(tuple(p.grad for p in heads))
    for p, old in zip(wanted, before, strict=True):
        p.grad = old
    refuse_detached(detached, "shared parameters")
    mean, counts = mean_over_tasks_present_(losses, range(len(names)), group)
    return ShardedGradients(
        matrix,
        shared,
        group,
        losses=mean,
        counts=counts,
        tasks=names,
        present=range(len(names)),
        heads=heads,
        head_gradients=head_rows,
    )
