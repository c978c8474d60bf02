"""Every task's gradient at one point: what a projected search takes from it, and what falls out on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession

__all__ = ["TaskSlopes", "flat", "mean_weights", "norm", "pull_back", "task_slopes", "weighted"]

_FEW = 3  # vectors whose pairs are multiplied one by one: faster than to copy them into a matrix first


@dataclass(frozen=True)
class TaskSlopes:
    r"""The task losses at one point, to first order.

    Attributes:
        rows: :math:`\nabla_\varphi L_i` of the k tasks present, ``[k, p]``.
        weighted: :math:`\nabla_\theta L_R`, one fresh tensor per parameter, or ``None`` where none was asked for.
        gramian: the Gramian ``[m, m]`` of :math:`\nabla_\theta L_i`, float64 on the CPU, zero where a task is absent;
            ``None`` where gradients were not held together.
    """

    rows: Tensor
    weighted: list[Tensor] | None
    gramian: Tensor | None


def task_slopes(
    session: AdapterSession,
    point: Mapping[str, Tensor],
    losses: TaskLosses,
    weights: Tensor | None = None,
    *,
    retain_graph: bool = False,
) -> TaskSlopes:
    r"""Differentiate each task's loss once, by the whole point; the chain rule through the adapter gives its row.

    Where ``session.holds_all_gradients``, the gradients of all tasks are held together, as by a step that keeps its
    Jacobian, and their Gramian falls out. Otherwise one is held at a time, beside the weighted sum.

    Args:
        session: the problem with its adapter, which must have a free point.
        point: from ``session.parameters()``.
        losses: the losses there.
        weights: the coefficients ``[k]`` of the weighted sum, if it is wanted.
        retain_graph: keep the graph of the losses.
    """
    tensors = list(point.values())
    rows: list[Tensor] = []
    held: deque[list[Tensor]] = deque([] for _ in tensors)
    total: list[Tensor] = []
    for k, gradients in enumerate(session.each_task_gradient(losses, tensors, retain_graph=retain_graph)):
        rows.append(pull_back(tensors, session.trainable, gradients))
        if session.holds_all_gradients:
            for together, gradient in zip(held, gradients, strict=True):
                together.append(gradient)
        elif weights is not None and not total:
            total = [gradient * weights[k].to(gradient) for gradient in gradients]
        elif weights is not None:
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.add_(gradient * weights[k].to(gradient))
        del gradients
    gramian: Tensor | None = None
    if session.holds_all_gradients:
        gramian = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
        for tensor in tensors:
            # One parameter after the other, so that a task's part goes as soon as it is used.
            parts = [gradient.reshape(-1) for gradient in held.popleft()]
            gramian += _inner_products(parts)
            if weights is not None:
                share = parts[0] * weights[0].to(parts[0])
                for part, weight in zip(parts[1:], weights[1:], strict=True):
                    share.add_(part * weight.to(part))
                total.append(share.view(tensor.shape))
        gramian = _full(gramian.cpu(), losses)
    return TaskSlopes(torch.stack(rows), None if weights is None else total, gramian)


def _inner_products(vectors: Sequence[Tensor]) -> Tensor:
    """``[k, k]``, in single precision at least; for a few vectors without a copy of them."""
    wide = [v.float() if v.dtype.itemsize < 4 else v for v in vectors]
    if len(wide) > _FEW:
        matrix = torch.stack(wide)
        return matrix @ matrix.T
    return torch.stack([torch.stack([torch.dot(a, b) for b in wide]) for a in wide])


def _full(gramian: Tensor, losses: TaskLosses) -> Tensor:
    """``[m, m]`` from the ``[k, k]`` of the tasks present."""
    if losses.is_complete:
        return gramian
    index = torch.tensor(losses.index)
    full = gramian.new_zeros(losses.n_tasks, losses.n_tasks)
    full[index[:, None], index] = gramian
    return full


def pull_back(point: Sequence[Tensor], tensors: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """The chain rule through the adapter: gradients by the point to gradients by the adapter's tensors."""
    attached = [(p, v) for p, v in zip(point, vectors, strict=True) if p.grad_fn is not None]
    return flat(
        torch.autograd.grad(
            [p for p, _ in attached],
            tensors,
            [v for _, v in attached],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def mean_weights(losses: TaskLosses, balance: Tensor) -> Tensor:
    """The coefficients of the present tasks in the weighted loss, ``[k]``."""
    own = balance if losses.is_complete else balance[list(losses.index)]
    return own / len(losses.index)


def weighted(losses: TaskLosses, balance: Tensor) -> Tensor:
    """The weighted loss, a scalar."""
    values = losses.values
    weights = balance.to(values)
    return ((weights if losses.is_complete else weights[list(losses.index)]) * values).mean()


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together, in single precision at least."""
    return (
        torch.stack([t.float().square().sum() if t.dtype.itemsize < 4 else t.square().sum() for t in tensors])
        .sum()
        .sqrt()
    )
