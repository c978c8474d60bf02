"""From losses to task gradients: the only place that differentiates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.collecting.arguments import Losses, read_features, read_losses, read_shared
from mtl_core.collecting.backward import (
    batched_rows,
    check_finite_losses,
    feature_rows,
    full_losses,
    head_gradients,
    sequential_rows,
)
from mtl_core.collecting.deferred import DeferredGradients, through_features, weighted_backward
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.graph import Outputs, batches_well, check_attached, heads_above, is_compiled
from mtl_core.collecting.rows import GradientRows
from mtl_core.collecting.sharded import ScatteredGradients, differentiate_sharded
from mtl_core.collecting.store import Store
from mtl_core.collecting.streaming import streamed_gramian
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import is_sharded
from mtl_core.errors import InvalidInputError

__all__ = ["Keep", "Losses", "TaskGradients", "collect", "gramian_of"]

Keep = Literal["jacobian", "scattered", "gramian", "features"]
"""What ``collect`` keeps of the gradients."""


def collect(
    losses: Losses,
    shared: Iterable[Tensor],
    *,
    features: Tensor | Sequence[Tensor] | None = None,
    heads: Iterable[Tensor] = (),
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    keep: Keep = "jacobian",
    tasks: Sequence[str] | None = None,
    retain_graph: bool = False,
) -> TaskGradients:
    r"""The gradient of each task's loss with respect to the shared parameters.

    .. math:: J_{i} = \nabla_\theta L_i, \qquad i = 1, \dots, m

    With ``features`` :math:`z(\theta)`, through which alone the losses depend on :math:`\theta`, each head is
    differentiated once and then the trunk once per task,
    :math:`J_i = (\partial z/\partial\theta)^\top \partial L_i/\partial z`: the same numbers for less work, since no
    head is passed more than once.

    The heads' own gradients, :math:`\sum_i \partial L_i/\partial h`, are added to their ``.grad`` on the way. The
    shared parameters' ``.grad`` is left alone.

    Args:
        losses: a tensor ``[m]``, a sequence of ``m`` scalars, or a mapping from task to scalar. Scalars stacked with
            ``torch.stack`` are taken apart again, so that no task's backward pass runs through another's head.
        shared: the parameters the tasks share.
        features: the trunk's output or outputs that the losses were computed from.
        heads: the parameters of the heads.
        chunk_size: how many tasks' vector–Jacobian products are done at once (by ``vmap``). 1: one after the other,
            which needs no support by the operations and the least memory. ``None``: one after the other too, as that
            was measured to be as fast or faster, but for trunks so tiny that a pass is mostly overhead: with
            ``features`` on the CPU, eight tasks or more and at most 65,536 gradient entries in one pass through the
            trunk, all tasks at once. A compiled model is always differentiated one after the other, which ``notes``
            then says.
        group: a process group. Gradients and losses are then means over those of its ranks that have the task in their
            batch, the same on each rank.
        keep: ``"jacobian"``: the gradients ``[m, d]``. ``"gramian"``: their Gramian alone, exactly, computed block by
            block of the parameters so that nothing of size ``[m, d]`` is ever held; combining them costs one more
            backward pass. ``"features"``: an approximation, the Gramian of the gradients by the *features*, which needs
            no backward pass through the trunk but the one that combines (the upper bound of MGDA-UB). ``"scattered"``,
            with ``group``: the gradients, of which each rank keeps an equal part of the columns.
        tasks: the tasks' names, for messages and reports.
        retain_graph: keep the graph, for a further backward pass by the caller.

    Returns:
        ``TaskGradients`` with a zero entry wherever a task does not touch a parameter.

    Raises:
        NoLossesError: there is no loss.
        NonScalarLossError: some loss is not a scalar.
        NonFiniteLossError: some loss is NaN or infinite (found here for CPU tensors; elsewhere when the Gramian is
            read, so that the device need not be waited for).
        DetachedLossError: some loss does not depend on any shared parameter (on the features, if given).
        NoSharedParametersError: ``shared`` is empty or wholly frozen.
        InvalidInputError: a loss reaches the shared parameters past the features.

    References:
        Sener and Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018, section 3.3 (features,
        upper bound).

    Example:
        >>> import torch
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> grads = collect([theta[0] ** 2, theta.sum()], [theta])
        >>> grads.matrix
        tensor([[2., 0.],
                [1., 1.]])
        >>> grads.assign(grads.combine(torch.tensor([0.5, 1.0])))
        >>> theta.grad
        tensor([2., 1.])
    """
    outputs, names = read_losses(losses, tasks)
    gradients = differentiate(
        outputs,
        names,
        range(len(names)),
        read_shared(shared),
        features=None if features is None else read_features(features),
        heads=tuple(p for p in heads if p.requires_grad),
        chunk_size=chunk_size,
        group=group,
        keep=checks.one_of("keep", keep, get_args(Keep)),
        retain_graph=retain_graph,
    )
    gradients.assign_heads()
    gradients.drop_heads()
    return gradients


def differentiate(
    outputs: Outputs,
    names: Sequence[str],
    index: Sequence[int],
    shared: tuple[Tensor, ...],
    *,
    features: tuple[Tensor, ...] | None,
    heads: tuple[Tensor, ...],
    chunk_size: int | None,
    group: dist.ProcessGroup | None,
    keep: Keep,
    retain_graph: bool,
) -> TaskGradients:
    """The engine of ``collect``, on checked input; the heads' gradients stay in the result until ``assign_heads``.

    ``outputs`` are the losses of the present tasks, ``index`` their positions among all ``names``; the other rows are
    zero. The rest is as for ``collect``.
    """
    if chunk_size is not None:
        checks.positive_int("chunk_size", chunk_size)
    losses = full_losses(outputs, len(names), index)
    if losses.device.type == "cpu":
        check_finite_losses(losses, names, index)
    present = [names[i] for i in index]
    owned = [] if features is None else heads_above(outputs, present, features, shared, heads)
    if is_sharded(shared):
        if keep != "jacobian" or chunk_size not in (None, 1):
            raise InvalidInputError(
                f"a sharded model needs keep='jacobian' and chunk_size=1, got {keep!r} and {chunk_size!r}: its "
                "gradients exist on no rank as a whole and are collected by one backward pass per task."
            )
        return differentiate_sharded(outputs, names, losses, shared, heads)
    if keep in ("gramian", "features"):
        return _deferred(outputs, names, index, shared, losses, features, heads, owned, group, keep)
    notes: tuple[str, ...] = ()
    if chunk_size is not None and chunk_size > 1 and is_compiled(outputs):
        notes = (
            f"chunk_size={chunk_size} became 1: the graph of a compiled model cannot be differentiated in batches",
        )
        chunk_size = 1
    found = Store(len(names), index, shared)
    if features is not None:
        if chunk_size is None:
            many = len(index) >= _MANY and losses.device.type == "cpu" and batches_well(features, _TINY)
            chunk_size = len(index) if many else 1
        head_rows = feature_rows(outputs, found, present, features, shared, heads, owned, chunk_size, retain_graph)
    elif chunk_size is None or chunk_size == 1:
        head_rows = sequential_rows(outputs, found, present, shared, heads, retain_graph)
    else:
        check_attached(outputs, present, shared)
        head_rows = batched_rows(outputs, found, shared, heads, chunk_size, retain_graph)
    gradients = TaskGradients(
        found.matrix if found.matrix is not None else GradientRows(found.rows, shared),
        shared,
        losses=losses,
        tasks=names,
        present=index,
        heads=heads,
        head_gradients=head_rows,
        notes=notes,
        untouched=[j for j, touched in enumerate(found.touched) if not touched],
    )
    if keep == "scattered":
        if group is None:
            raise InvalidInputError("`keep='scattered'` needs `group`, the process group to scatter over, got none.")
        return ScatteredGradients(gradients, group)
    if group is not None:
        gradients.average(group)
    return gradients


_MANY = 8
_TINY = 1 << 16
"""From so many tasks on, and up to so many entries in one pass of the trunk, batching is the quicker (on CPUs)."""

_BLOCKS = 16
"""Into how many blocks of about equal size the parameters are cut where the Jacobian is not kept."""


def _deferred(
    outputs: Outputs,
    names: Sequence[str],
    index: Sequence[int],
    shared: tuple[Tensor, ...],
    losses: Tensor,
    features: tuple[Tensor, ...] | None,
    heads: tuple[Tensor, ...],
    owned: Sequence[Sequence[int]],
    group: dist.ProcessGroup | None,
    keep: Keep,
) -> DeferredGradients:
    if group is not None:
        raise InvalidInputError(
            f"`group` needs keep='jacobian', got keep={keep!r}: the Gramian of mean gradients is not a mean of "
            "the ranks' Gramians."
        )
    present = [names[i] for i in index]
    if keep == "features":
        if features is None:
            raise InvalidInputError("`keep='features'` needs `features`, got none. Give the trunk's outputs.")
        at_features, head_rows = head_gradients(outputs, present, features, heads, owned)
        found, backward = through_features(at_features, features, index, shared)
    else:
        block = max(1, sum(p.numel() for p in shared) // _BLOCKS)
        found, head_rows = streamed_gramian(outputs, present, shared, heads, block=block)
        backward = weighted_backward(outputs, index, shared)
    gramian = found
    if len(index) < len(names):
        gramian = found.new_zeros(len(names), len(names))
        places = torch.tensor(list(index), device=found.device)
        gramian[places[:, None], places] = found
    return DeferredGradients(
        gramian, backward, shared, losses=losses, tasks=names, present=index, heads=heads, head_gradients=head_rows
    )
