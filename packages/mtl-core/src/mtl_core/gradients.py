"""From losses to task gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.agreement import together
from mtl_core.collecting.arguments import Losses, read_heads, read_losses, read_shared
from mtl_core.collecting.backward import (
    batched_rows,
    check_finite_losses,
    feature_rows,
    full_losses,
    head_gradients,
    is_on_host,
    sequential_rows,
)
from mtl_core.collecting.cut import cut_of, heads_above
from mtl_core.collecting.deferred import DeferredStore, through_features, weighted_backward
from mtl_core.collecting.flat import Row
from mtl_core.collecting.graph import (
    Outputs,
    batches_well,
    check_attached,
    is_compiled,
    reached_by_any,
)
from mtl_core.collecting.heads import HeadGradients
from mtl_core.collecting.sharded import differentiate_sharded
from mtl_core.collecting.store import DenseStore
from mtl_core.collecting.streaming import streamed_gramian
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import is_sharded
from mtl_core.errors import InvalidInputError
from mtl_core.report import Keep
from mtl_core.task_losses import Features, read_features

__all__ = ["check_group", "collect", "differentiate"]


def collect(
    losses: Losses,
    shared: Iterable[Tensor],
    *,
    features: Features = None,
    heads: Iterable[Tensor] = (),
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    keep: Keep = "jacobian",
    tasks: Sequence[str] | None = None,
    retain_graph: bool = False,
    check_gradients: bool = True,
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
        features: the trunk's output or outputs that the losses were computed from: a tensor, or any nesting of tuples,
            lists and mappings of tensors.
        heads: the parameters of the heads, none of them shared. Each counts once, however often it is named.
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
        check_gradients: whether the heads' gradients must be finite before they are written; on the CPU only, as
            elsewhere it would mean waiting for the device. Those of the shared parameters are looked at when the
            Gramian is read.

    Returns:
        ``TaskGradients`` with a zero entry wherever a task does not touch a parameter.

    Raises:
        NoLossesError: there is no loss.
        NonScalarLossError: some loss is not a scalar.
        NonFiniteLossError: some loss is NaN or infinite (found here for CPU tensors; elsewhere when the Gramian is
            read, so that the device need not be waited for).
        DetachedLossError: some loss does not depend on any shared parameter (on the features, if given).
        NonFiniteGradientError: the gradient of a head is NaN or infinite though the loss is finite (on the CPU).
        NoSharedParametersError: ``shared`` is empty or wholly frozen.
        InvalidInputError: a loss reaches the shared parameters past the features, one feature is computed from another,
            or a parameter is both shared and a head's.

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
    checks.one_of("keep", keep, get_args(Keep))
    check_group(keep, group)
    with together(group):
        outputs, names = read_losses(losses, tasks)
        parameters = read_shared(shared)
        gradients = differentiate(
            outputs,
            names,
            range(len(names)),
            parameters,
            features=read_features(features),
            heads=read_heads(heads, parameters),
            chunk_size=chunk_size,
            keep=keep,
            retain_graph=retain_graph,
        )
        if check_gradients and is_on_host(gradients.losses):
            gradients.refuse_broken_heads()
    if group is not None and not is_sharded(parameters):
        gradients.average(group, scattered=keep == "scattered")
    gradients.assign_heads()
    gradients.drop_heads()
    return gradients


def check_group(keep: Keep, group: dist.ProcessGroup | None) -> None:
    """Make sure that what is kept can be averaged over ranks.

    Raises:
        InvalidInputError: it cannot, or there is nobody to scatter over.
    """
    if keep == "scattered" and group is None:
        raise InvalidInputError("`keep='scattered'` needs `group`, the process group to scatter over, got none.")
    if keep in ("gramian", "features") and group is not None:
        raise InvalidInputError(
            f"`group` needs keep='jacobian', got keep={keep!r}: the Gramian of mean gradients is not a mean of "
            "the ranks' Gramians."
        )


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
    if is_on_host(losses):
        check_finite_losses(losses, names, index)
    present = [names[i] for i in index]
    if is_sharded(shared):
        if keep != "jacobian" or chunk_size not in (None, 1):
            raise InvalidInputError(
                f"a sharded model needs keep='jacobian' and chunk_size=1, got {keep!r} and {chunk_size!r}: its "
                "gradients exist on no rank as a whole and are collected by one backward pass per task."
            )
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
            many = len(index) >= _MANY and losses.device.type == "cpu" and batches_well(features, _TINY)
            chunk_size = len(index) if many else 1
        head_rows = feature_rows(outputs, dense, present, features, shared, heads, owned, chunk_size, retain_graph)
    elif chunk_size is None or chunk_size == 1:
        head_rows = sequential_rows(outputs, dense, present, shared, heads, retain_graph)
    else:
        check_attached(outputs, present, shared)
        head_rows = batched_rows(outputs, dense, shared, heads, chunk_size, retain_graph)
    gradients = TaskGradients(
        dense,
        losses=losses,
        tasks=names,
        present=index,
        heads=HeadGradients(heads, head_rows, index, len(names)),
        notes=notes,
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
    else:
        block = max(1, sum(p.numel() for p in shared) // _BLOCKS)
        found, head_rows = streamed_gramian(outputs, present, shared, heads, block=block)
        backward = weighted_backward(outputs, index, shared)
    gramian = found
    if len(index) < n_tasks:
        gramian = found.new_zeros(n_tasks, n_tasks)
        places = torch.tensor(list(index), device=found.device)
        gramian[places[:, None], places] = found
    touched = reached_by_any(outputs, shared)
    return DeferredStore(gramian, backward, shared, touched, is_exact=keep == "gramian"), head_rows
