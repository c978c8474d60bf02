"""Sums over ranks of what each has written to ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_core.distributed import sum_over_ranks_
from mtl_core.problem import Problem

__all__ = ["sum_gradients"]


def sum_gradients(
    problem: Problem, parameters: Sequence[Tensor], touched: Sequence[bool], group: dist.ProcessGroup
) -> Tensor:
    """Sum what each rank has written; a rank without a parameter's task adds zero.

    Returns:
        how many ranks touch each parameter.
    """
    by_rows = _summed_by_rows(problem, parameters, group)
    for k, parameter in enumerate(parameters):
        # All ranks must enter the sum with the same tensors, in the same layout, whatever tasks they have.
        if parameter.grad is None:
            parameter.grad = _no_rows(parameter) if k in by_rows else torch.zeros_like(parameter)
        elif parameter.grad.layout != torch.strided and k not in by_rows:
            parameter.grad = parameter.grad.to_dense()
    counts = torch.tensor(touched, dtype=torch.float32, device=parameters[0].device)
    sum_over_ranks_([*(p.grad for p in parameters if p.grad is not None), counts], group)
    return counts


def _summed_by_rows(problem: Problem, parameters: Sequence[Tensor], group: dist.ProcessGroup) -> set[int]:
    """Positions of the tables of embeddings whose gradient is sparse on every rank that has one.

    Of other sparse gradients only the rank that has one knows; their sums are dense. So are all on backends other than
    gloo, which alone sums sparse tensors everywhere.
    """
    tables = {
        id(module.weight)
        for _, module in problem.listing.modules
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }
    places = [k for k, parameter in enumerate(parameters) if id(parameter) in tables]
    if not places or dist.get_backend(group) != "gloo":
        return set()
    gradients = [parameters[k].grad for k in places]
    dense = torch.tensor([g is not None and not g.is_sparse for g in gradients], dtype=torch.float32, device="cpu")
    # A table that a task also uses as a matrix has a dense gradient on the ranks that have this task.
    sum_over_ranks_([dense], group)
    return {k for k, count in zip(places, dense.tolist(), strict=True) if not count}


def _no_rows(table: Tensor) -> Tensor:
    """A sparse gradient of zero."""
    indices = torch.zeros(1, 0, dtype=torch.int64, device=table.device)
    return torch.sparse_coo_tensor(indices, table.new_zeros(0, *table.shape[1:]), table.shape, check_invariants=False)
