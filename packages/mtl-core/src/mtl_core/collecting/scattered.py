"""Gradients of which each rank holds some columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.collecting.gramian import gramian_of, weighted_sum
from mtl_core.collecting.store import GradientStore
from mtl_core.distributed import sum_over_ranks_

__all__ = ["PartialStore", "ScatteredStore", "scatter"]


class PartialStore(GradientStore):
    """The columns of this rank; the Gramian is the sum of all ranks' parts."""

    is_partial = True

    def __init__(
        self,
        matrix: Tensor,
        parameters: Sequence[Tensor],
        columns: dist.ProcessGroup,
        touched: Sequence[bool] | None = None,
    ) -> None:
        super().__init__(parameters, len(matrix), touched)
        self._matrix = matrix
        self.columns = columns

    @property
    def matrix(self) -> Tensor:
        """This rank's columns of the Jacobian."""
        return self._matrix

    def gramian(self) -> Tensor:
        r"""The Gramian of the whole Jacobian, :math:`\sum_r J_r J_r^\top`, the same on every rank."""
        gramian = gramian_of(self._matrix)
        sum_over_ranks_([gramian], self.columns)
        return gramian

    def mean(self) -> Tensor:
        """This rank's columns of the mean gradient."""
        return self._matrix.mean(dim=0)

    def rescale(self, factor: Tensor) -> None:
        """Multiply the gradients by a positive number."""
        self._matrix.mul_(factor)

    def _part(self, weights: Tensor, gramian: Tensor | None) -> Tensor:
        """This rank's columns of the weighted sum."""
        return weighted_sum(self._matrix, weights, gramian)


class ScatteredStore(PartialStore):
    """Gradients averaged over ranks of which each rank keeps an equal part of the columns.

    Made by ``collect(..., keep="scattered", group=group)``. A reduction to parts and one gathering of the update move
    about half the bytes that averaging the whole Jacobian on every rank does, and each rank keeps ``1/n`` of it.

    Args:
        full: this rank's own gradients.
        share: the factor ``[m]`` of each task's gradient once it is summed.
        group: the ranks.
    """

    def __init__(self, full: GradientStore, share: Tensor, group: dist.ProcessGroup) -> None:
        matrix = scatter(full.matrix, group)
        # After the reduction, when each rank has only its own columns left to scale.
        matrix.mul_(share.to(matrix.dtype).unsqueeze(1))
        super().__init__(matrix, full.parameters, group, full.touched)

    def combine(self, weights: Tensor, gramian: Tensor | None) -> Tensor:
        """The combination ``[d]``, gathered from all ranks' parts."""
        part = self._part(weights, gramian)
        whole = part.new_empty(dist.get_world_size(self.columns) * len(part))
        dist.all_gather_into_tensor(whole, part, group=self.columns)
        # What follows is the padding that made the parts equal.
        return whole[: self.width]


def scatter(matrix: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum ``[m, d]`` over ranks and keep this rank's columns ``[m, ceil(d / n)]``, zero where there are no more."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    n_tasks, width = matrix.shape
    part = -(-width // size)
    # A reduce-scatter takes parts of one size.
    padded = torch.nn.functional.pad(matrix, (0, part * size - width))
    # Each rank's columns must lie in one piece of memory to be sent; in the padded rows they are strided.
    parts = padded.view(n_tasks, size, part).transpose(0, 1).contiguous()
    if dist.get_backend(group) == "gloo":
        # Not every build of gloo has a reduce-scatter; one reduction per rank moves the same bytes.
        for other in range(size):
            dist.reduce(parts[other], dst=dist.get_global_rank(group, other), group=group)
        return parts[rank].clone()
    found = torch.empty_like(parts[rank])
    dist.reduce_scatter_tensor(found, parts, group=group)
    return found
