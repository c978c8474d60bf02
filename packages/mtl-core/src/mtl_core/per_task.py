"""Task gradients where each task has data of its own and one network serves all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl_core import checks
from mtl_core.collecting.dense import DenseStore
from mtl_core.collecting.finite import check_finite_losses
from mtl_core.collecting.graph import reached_by_any
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.errors import InvalidInputError, NoLossesError, NonScalarLossError
from mtl_core.preservation import preserved
from mtl_core.problem import Problem
from mtl_core.shared_parameters import SharedSpec

__all__ = ["collect_per_task"]


def collect_per_task(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    *,
    shared: SharedSpec | None = None,
    chunk_size: int | None = None,
    tasks: Sequence[str] | None = None,
) -> TaskGradients:
    r"""The gradients :math:`J_i = \nabla_\theta \ell(\theta; B_i)` of one loss on a batch per task.

    Where every task has its own data, as in multi-task reinforcement learning, and the loss is the same function for
    all, forward and backward passes of all tasks are done together by ``torch.func.vmap``: no task's data is passed
    through another's graph, and small networks do not pay their overhead ``m`` times.

    Args:
        model: the network; nothing in it belongs to one task alone. Parameters outside ``shared`` are constants here.
        loss: ``loss(model, batch)`` for one task, a scalar; in operations that ``vmap`` supports, without reading
            values (``.item()``) and without changing buffers in place, as batch normalisation does in training mode.
        batches: one batch per task: tensors, or the same nesting of tuples, lists and dictionaries of tensors, of equal
            shapes.
        shared: which parameters to differentiate by, as for ``Problem``; all trainable ones if ``None``.
        chunk_size: how many tasks at once; all if ``None``.
        tasks: the tasks' names.

    Returns:
        gradients as from ``collect``.

    Raises:
        NoLossesError: there is no batch.
        InvalidInputError: the batches differ in nesting or shape.
        NonScalarLossError: the loss is not a scalar.
        NonFiniteLossError: a loss is NaN or infinite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batches = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])]
        >>> collect_per_task(model, lambda model, x: model(x).sum(), batches).matrix
        tensor([[1., 0.],
                [0., 3.]])
    """
    found = list(batches)
    if not found:
        raise NoLossesError("`batches` must hold one batch per task, got none.")
    names = tuple(str(i) for i in range(len(found))) if tasks is None else tuple(tasks)
    if len(names) != len(found):
        raise InvalidInputError(f"`tasks` must name each of the {len(found)} batches, got {len(names)} names.")
    if chunk_size is not None:
        checks.positive_int("chunk_size", chunk_size)

    # A `Problem` of one task, so that the loss is evaluated at given parameters with the same checks as everywhere.
    def one_loss(model: nn.Module, batch: Any) -> Tensor:
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.ndim:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise NonScalarLossError(f"`loss` must return a scalar tensor, got {shape}. Reduce it over the batch.")
        return value.unsqueeze(0)

    parameters: SharedSpec = [p for p in model.parameters() if p.requires_grad] if shared is None else shared
    problem = Problem(model, one_loss, shared=parameters, tasks=("task",))
    # Detached: vmap differentiates by them, and the model's own graph is not wanted.
    values = {name: p.detach() for name, p in problem.named_shared.items()}

    def of_one(own: dict[str, Tensor], batch: Any) -> Tensor:
        return problem.losses(batch, parameters=own).values[0]

    gradients, losses = torch.func.vmap(
        # Parameters are the same for all tasks, batches lie in the first dimension, and dropout draws anew for each
        # task, as passes one after the other would.
        torch.func.grad_and_value(of_one),
        in_dims=(None, 0),
        randomness="different",
        chunk_size=chunk_size,
    )(values, _stacked(found))
    if losses.device.type == "cpu":
        check_finite_losses(losses, names, range(len(names)))
    rows = [gradients[name].reshape(len(names), -1) for name in values]
    # vmap gives zeros where a loss does not reach a parameter; only a graph tells these from gradients that are zero.
    with preserved(model), torch.enable_grad():
        touched = reached_by_any(problem.losses(found[0]).outputs, problem.shared)
    store = DenseStore.of(torch.cat(rows, dim=1), problem.shared, touched)
    return TaskGradients(store, losses=losses.detach(), tasks=names)


def _stacked(batches: list[Any]) -> Any:
    """One batch whose tensors have a dimension of tasks in front."""
    first, spec = pytree.tree_flatten(batches[0])
    columns: list[list[Any]] = [[leaf] for leaf in first]
    for batch in batches[1:]:
        leaves, other = pytree.tree_flatten(batch)
        if other != spec:
            raise InvalidInputError(f"`batches` must be nested alike, got {spec} and {other}.")
        for column, leaf in zip(columns, leaves, strict=True):
            column.append(leaf)
    stacked = []
    for column in columns:
        shapes = {tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in column}
        if len(shapes) > 1 or not isinstance(column[0], Tensor):
            raise InvalidInputError(
                f"`batches` must hold tensors of equal shapes, got {sorted(map(str, shapes))}. Give each task as many "
                "examples as the others, or use collect() on one loss per task."
            )
        stacked.append(torch.stack(column))
    return pytree.tree_unflatten(stacked, spec)
