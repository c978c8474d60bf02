"""From losses to task gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.agreement import together
from mtl_core.autocasting import full_precision
from mtl_core.collecting.arguments import Losses, read_heads, read_losses, read_shared
from mtl_core.collecting.backward import is_on_host
from mtl_core.collecting.differentiation import differentiate, shard_ranks_of
from mtl_core.collecting.reentrant import refuse_reentrant
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.distributed import is_sharded
from mtl_core.errors import DetachedLossError, InvalidInputError
from mtl_core.report import Keep
from mtl_core.task_losses import Features, read_features

__all__ = ["check_group", "collect"]


@full_precision
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
            backward pass, which the weights enter in the losses' dtype: with losses in bfloat16 each is off by up to
            0.2 %, in float16 by 0.02 %, so compute losses in float32. ``"features"``: an approximation, the Gramian of
            the gradients by the *features*, which needs no backward pass through the trunk but the one that combines
            (the upper bound of MGDA-UB). ``"scattered"``, with ``group``: the gradients, of which each rank keeps an
            equal part of the columns.
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
        InvalidInputError: a loss is not of a real floating dtype or reaches the shared parameters past the features,
            ``tasks`` are not distinct names, or not those of a mapping, one feature is computed from another, or a
            parameter is both shared and a head's.

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
    # Settings are looked at before the agreement: they are the same on every rank, and one of them is the group.
    checks.one_of("keep", keep, get_args(Keep))
    check_group(keep, group)
    # A generator of parameters can be gone through once.
    listed = (shared,) if isinstance(shared, Tensor) else tuple(shared)
    shard_ranks = shard_ranks_of(listed)
    with together(group if shard_ranks is None else shard_ranks):
        outputs, names = read_losses(losses, tasks)
        parameters = read_shared(shared if isinstance(shared, Tensor) else listed)
        try:
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
        except (RuntimeError, DetachedLossError) as error:
            refuse_reentrant(outputs, error)
            raise
        if not all(gradients.kept.touched):
            refuse_reentrant(outputs)
        if check_gradients and is_on_host(gradients.losses):
            gradients.refuse_broken_heads()
    # The hooks of a sharded model have averaged its gradients already.
    if group is not None and not is_sharded(parameters):
        # After the block, by when all ranks have their gradients: the average waits for every rank.
        gradients.average(group, scattered=keep == "scattered")
    gradients.assign_heads()
    # They are written; the result would hold their memory as long as it lives.
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
