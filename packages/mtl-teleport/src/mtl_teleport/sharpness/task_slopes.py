"""Every task's gradient at one point: what a projected search takes from it, and what falls out on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.sharpness.point import Point

__all__ = ["TaskSlopes", "task_slopes"]

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


def task_slopes(point: Point, *, weighted: bool = False, retain_graph: bool = False) -> TaskSlopes:
    r"""Differentiate each task's loss once, by the whole point; the chain rule through the adapter gives its row.

    Where there is room for it (``Conditions.holds_all_gradients``) the gradients of all tasks are held together, as by
    a step that keeps its Jacobian, and their Gramian falls out. Otherwise one is held at a time, beside the weighted
    sum. An adapter that lives in the model's layers is differentiated by its own tensors, and gives no Gramian.

    Args:
        point: where.
        weighted: whether the gradient of :math:`L_R` is wanted, too.
        retain_graph: keep the graph of the losses.
    """
    session, tensors, weights = point.session, point.tensors, point.weights
    is_free = session.has_free_point
    together = is_free and session.conditions.holds_all_gradients
    inputs = tensors if is_free else [*session.trainable, *(tensors if weighted else ())]
    own = 0 if is_free else len(session.trainable)
    rows: list[Tensor] = []
    held: deque[list[Tensor]] = deque([] for _ in tensors)
    total: list[Tensor] = []
    for found in session.each_task_gradient(point.losses, inputs, at=point.values, retain_graph=retain_graph):
        weight = weights[len(rows)]
        # [p], small; the gradients by the whole point, [d], go on or are let go of.
        rows.append(point.pull_back(found, tensors) if is_free else point.pull_back(found[:own]))
        gradients = found[own:]
        del found
        if together:
            for column, gradient in zip(held, gradients, strict=True):
                column.append(gradient)
        elif weighted and not total:
            total = [gradient * weight.to(gradient) for gradient in gradients]
        elif weighted:
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.add_(gradient * weight.to(gradient))
        del gradients
    gramian = _consumed(held, weights if weighted else None, total, point) if together else None
    return TaskSlopes(torch.stack(rows), total if weighted else None, gramian)


def _consumed(held: deque[list[Tensor]], weights: Tensor | None, total: list[Tensor], point: Point) -> Tensor:
    """The Gramian of gradients that are held together; with weights, ``total`` is filled with their weighted sum."""
    gramian: Tensor | None = None
    for tensor in point.tensors:
        # One parameter after the other, so that a task's part goes as soon as it is used.
        parts = [gradient.reshape(-1) for gradient in held.popleft()]
        # Summed over parameters in double precision; within one, in its own, to be spared a wide copy.
        products = _inner_products(parts).to(torch.float64)
        gramian = products if gramian is None else gramian + products
        if weights is not None:
            share = parts[0] * weights[0].to(parts[0])
            for part, weight in zip(parts[1:], weights[1:], strict=True):
                share.add_(part * weight.to(part))
            total.append(share.view(tensor.shape))
    assert gramian is not None
    return _full(gramian.cpu(), point.losses)


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
    index = torch.tensor(losses.index, device="cpu")
    full = gramian.new_zeros(losses.n_tasks, losses.n_tasks)
    full[index[:, None], index] = gramian
    return full
