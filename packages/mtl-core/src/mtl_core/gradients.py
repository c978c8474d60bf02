"""From losses to task gradients: the only place that differentiates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.backward import (
    batched_rows,
    check_attached,
    check_finite_losses,
    check_no_bypass,
    empty_jacobian,
    feature_rows,
    flat_size,
    full_losses,
    sequential_rows,
)
from mtl_core.distributed import mean_over_ranks_
from mtl_core.errors import (
    InvalidInputError,
    InvalidJacobianError,
    NoLossesError,
    NonScalarLossError,
    NoSharedParametersError,
)

__all__ = ["Losses", "TaskGradients", "collect", "gramian_of"]

Losses = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Task losses: a tensor ``[m]``, a sequence of scalars, or a mapping from task name to scalar."""

_BLOCK = 1 << 19
"""Elements of a Jacobian that are converted to float64 at a time: 4 MiB, which stays in a core's cache."""


def gramian_of(jacobian: Tensor) -> Tensor:
    r"""The Gramian :math:`J J^\top`, ``[m, m]``, accumulated in float64.

    The columns are converted block by block, so that no float64 copy of the Jacobian is made. Rounding the products to
    float32 instead would lose the angle between near-parallel gradients below :math:`10^{-4}` radians.

    Args:
        jacobian: ``[m, d]`` of any real floating dtype.

    Returns:
        float64 ``[m, m]``, exactly symmetric.
    """
    n_tasks, size = jacobian.shape
    matrix = jacobian.detach()
    block = max(1, _BLOCK // n_tasks)
    if size <= block or matrix.dtype == torch.float64:
        wide = matrix.to(torch.float64)
        gramian = wide @ wide.T
    else:
        gramian = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=matrix.device)
        for start in range(0, size, block):
            wide = matrix[:, start : start + block].to(torch.float64)
            gramian.addmm_(wide, wide.T)
    return (gramian + gramian.T).mul_(0.5)


class TaskGradients:
    r"""The gradients :math:`g_i = \nabla_\theta L_i` of ``m`` task losses with respect to the shared parameters.

    Made by ``collect``. Rows are tasks; columns are the shared parameters one after the other, each flattened (a
    complex parameter as its real and imaginary parts). A parameter that a task does not touch has a zero entry; a task
    that is absent from the batch has a zero row.

    Attributes:
        matrix: the Jacobian ``[m, d]``.
        parameters: the shared parameters, in the order of the columns.
        losses: the losses ``[m]``, detached; NaN for an absent task.
        tasks: the tasks' names (``"0"``, ``"1"``, … if none were given).
        present: positions of the tasks that have a loss in this batch.
    """

    def __init__(
        self,
        matrix: Tensor,
        parameters: Sequence[Tensor],
        *,
        losses: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        present: Sequence[int] | None = None,
        heads: Sequence[Tensor] = (),
        head_gradients: Sequence[Sequence[Tensor | None]] = (),
    ) -> None:
        n_tasks, size = matrix.shape
        expected = sum(flat_size(p) for p in parameters)
        if expected != size:
            raise InvalidJacobianError(
                f"`matrix` must have one column per shared parameter entry, {expected}, got shape "
                f"{tuple(matrix.shape)}."
            )
        self.matrix = matrix
        self.parameters = tuple(parameters)
        self.losses = matrix.new_full((n_tasks,), float("nan")) if losses is None else losses
        self.tasks = tuple(str(i) for i in range(n_tasks)) if tasks is None else tuple(tasks)
        self.present = tuple(range(n_tasks)) if present is None else tuple(present)
        self._heads = tuple(heads)
        self._head_gradients = tuple(tuple(row) for row in head_gradients) or tuple(() for _ in self.present)

    def __repr__(self) -> str:
        shape, dtype, device = tuple(self.matrix.shape), self.matrix.dtype, self.matrix.device
        return f"TaskGradients(tasks={self.tasks}, shape={shape}, dtype={dtype}, device={device})"

    @property
    def n_tasks(self) -> int:
        """Number ``m`` of tasks."""
        return self.matrix.shape[0]

    @cached_property
    def gramian(self) -> Tensor:
        r"""The Gramian :math:`G = J J^\top`, float64 ``[m, m]``, on the gradients' device; computed once."""
        return gramian_of(self.matrix)

    @cached_property
    def host_gramian(self) -> Tensor:
        """The Gramian on the CPU, checked.

        This is the one small copy from the device that a step needs; the losses travel with it.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
            InvalidJacobianError: a gradient is NaN or infinite though its loss is finite, or its squared norm leaves
                float64.
        """
        gramian = self.gramian
        packed = torch.cat([gramian, self.losses.to(gramian).unsqueeze(1)], dim=1).cpu()
        check_finite_losses(packed[:, -1], self.tasks, self.present)
        host = packed[:, :-1].contiguous()
        if not bool(torch.isfinite(host).all()):
            bad = [self.tasks[i] for i in range(self.n_tasks) if not bool(torch.isfinite(host[i, i]))]
            raise InvalidJacobianError(
                f"the gradients of tasks {bad} must be finite, got NaN or infinity though the losses are finite. "
                "Look for sqrt or log at zero in these losses, or pass the gradient scaler to step()."
            )
        return host

    @property
    def norms(self) -> Tensor:
        r"""Gradient norms :math:`\|g_i\|`, float64 ``[m]``."""
        return self.gramian.diagonal().clamp(min=0.0).sqrt()

    @property
    def mean(self) -> Tensor:
        r"""The mean gradient :math:`g_0 = \frac1m \sum_i g_i`, ``[d]``."""
        return self.matrix.mean(dim=0)

    def combine(self, weights: Tensor) -> Tensor:
        r"""The combination :math:`g_w = J^\top w`.

        Args:
            weights: ``[m]``, of any device and dtype.

        Returns:
            ``[d]`` in the Jacobian's dtype.

        Raises:
            InvalidInputError: there is not one finite weight per task.
        """
        if weights.shape != (self.n_tasks,):
            raise InvalidInputError(
                f"`weights` must hold one weight per task, shape ({self.n_tasks},), got {tuple(weights.shape)}."
            )
        if weights.device.type == "cpu" and not bool(torch.isfinite(weights).all()):
            raise InvalidInputError(f"`weights` must be finite, got {weights.tolist()}.")
        moved = weights.detach().to(device=self.matrix.device, dtype=self.matrix.dtype, non_blocking=True)
        return moved @ self.matrix

    def assign(self, vector: Tensor) -> None:
        """Write ``vector`` into the parameters' ``.grad``, replacing what is there.

        Each ``.grad`` is a view of ``vector``: nothing is copied unless a parameter's dtype differs.

        Args:
            vector: the update direction (a gradient, to be descended), ``[d]``.

        Raises:
            InvalidJacobianError: ``vector`` does not have one entry per column.
        """
        if vector.shape != self.matrix.shape[1:]:
            raise InvalidJacobianError(
                f"`vector` must have shape {tuple(self.matrix.shape[1:])}, one entry per shared parameter entry, "
                f"got {tuple(vector.shape)}."
            )
        start = 0
        for parameter in self.parameters:
            size = flat_size(parameter)
            part = vector[start : start + size]
            if parameter.is_complex():
                part = torch.view_as_complex(part.view(-1, 2))
            parameter.grad = part.view(parameter.shape).to(parameter.dtype)
            start += size

    def assign_heads(self, weights: Tensor | None = None) -> None:
        """Add the heads' gradients to their ``.grad``: of each task's own loss, or weighted.

        Args:
            weights: ``[m]``; ``None`` for one each.
        """
        moved: list[Tensor] | None = None
        if weights is not None and self._heads:
            moved = list(weights.detach().to(self._heads[0].device).unbind())
        for task, row in zip(self.present, self._head_gradients, strict=True):
            for head, gradient in zip(self._heads, row, strict=True):
                if gradient is None:
                    continue
                scaled = gradient if moved is None else gradient * moved[task].to(gradient.dtype)
                head.grad = scaled if head.grad is None else head.grad + scaled

    def rescale(self, factor: Tensor) -> None:
        """Multiply losses and gradients, those of the heads included, by a positive number."""
        self.__dict__.pop("gramian", None)
        self.__dict__.pop("host_gramian", None)
        self.matrix.mul_(factor)
        self.losses = self.losses * factor
        self.rescale_heads(factor)

    def rescale_heads(self, factor: Tensor) -> None:
        """Multiply the heads' gradients by a positive number."""
        self._head_gradients = tuple(
            tuple(None if g is None else g * factor.to(g.dtype) for g in row) for row in self._head_gradients
        )

    def drop_heads(self) -> None:
        """Forget the heads' gradients, which frees their memory."""
        self._heads, self._head_gradients = (), tuple(() for _ in self.present)


def collect(
    losses: Losses,
    shared: Iterable[Tensor],
    *,
    features: Tensor | Sequence[Tensor] | None = None,
    heads: Iterable[Tensor] = (),
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
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
        chunk_size: how many tasks' vector–Jacobian products are done at once (by ``vmap``); 1 or ``None``: one after
            the other, which needs no support by the operations and the least memory.
        group: a process group. Gradients and losses are then means over its ranks, the same on each.
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
    outputs, names = _read_losses(losses, tasks)
    gradients = differentiate(
        outputs,
        names,
        range(len(names)),
        _read_shared(shared),
        features=None if features is None else _read_features(features),
        heads=tuple(p for p in heads if p.requires_grad),
        chunk_size=chunk_size,
        group=group,
        retain_graph=retain_graph,
    )
    gradients.assign_heads()
    gradients.drop_heads()
    return gradients


def differentiate(
    outputs: tuple[Tensor, ...] | Tensor,
    names: Sequence[str],
    index: Sequence[int],
    shared: tuple[Tensor, ...],
    *,
    features: tuple[Tensor, ...] | None,
    heads: tuple[Tensor, ...],
    chunk_size: int | None,
    group: dist.ProcessGroup | None,
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
    matrix = empty_jacobian(len(names), shared)
    absent = sorted(set(range(len(names))) - set(index))
    if absent:
        matrix[absent] = 0
    rows = [matrix[i] for i in index]
    if features is not None:
        check_no_bypass(outputs, present, features, shared)
        head_rows = feature_rows(outputs, rows, present, features, shared, heads, chunk_size or 1, retain_graph)
    elif chunk_size is None or chunk_size == 1:
        head_rows = sequential_rows(outputs, rows, present, shared, heads, retain_graph)
    else:
        check_attached(outputs, present, shared)
        head_rows = batched_rows(outputs, rows, shared, heads, chunk_size, retain_graph)
    if group is not None:
        mean_over_ranks_([matrix, losses, *(g for row in head_rows for g in row if g is not None)], group)
    return TaskGradients(
        matrix, shared, losses=losses, tasks=names, present=index, heads=heads, head_gradients=head_rows
    )


def _read_losses(losses: Losses, tasks: Sequence[str] | None) -> tuple[tuple[Tensor, ...] | Tensor, tuple[str, ...]]:
    outputs: tuple[Tensor, ...] | Tensor
    names = None if tasks is None else tuple(tasks)
    if isinstance(losses, Mapping):
        names, outputs = tuple(losses), tuple(losses.values())
    elif isinstance(losses, Tensor):
        if losses.ndim != 1:
            raise NonScalarLossError(
                "`losses` must be a tensor of shape [m], a sequence of scalars or a mapping, got shape "
                f"{tuple(losses.shape)}. "
                "Stack one scalar per task."
            )
        outputs = losses
    else:
        outputs = tuple(losses)
    if len(outputs) == 0:
        raise NoLossesError("`losses` must hold at least one loss, got none.")
    names = tuple(str(i) for i in range(len(outputs))) if names is None else names
    if len(names) != len(outputs):
        raise InvalidInputError(f"`tasks` must name each of the {len(outputs)} losses, got {len(names)} names.")
    if not isinstance(outputs, Tensor):
        outputs = tuple(checks.scalar_loss(name, loss) for name, loss in zip(names, outputs, strict=True))
    return outputs, names


def _read_shared(shared: Iterable[Tensor]) -> tuple[Tensor, ...]:
    if isinstance(shared, Tensor):
        raise InvalidInputError("`shared` must be parameters, got one tensor. Wrap it in a list.")
    found = list(shared)
    trainable = tuple({id(p): p for p in found if p.requires_grad}.values())
    if not trainable:
        raise NoSharedParametersError(
            f"`shared` must hold at least one trainable parameter, got {len(found)} parameter(s)"
            f"{', all frozen. Set requires_grad=True on what the tasks are to share' if found else ''}."
        )
    devices = {p.device for p in trainable}
    if len(devices) > 1:
        raise InvalidInputError(
            f"`shared` must lie on one device, got {sorted(map(str, devices))}. Collect each device's parameters by "
            "themselves."
        )
    return trainable


def _read_features(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = (features,) if isinstance(features, Tensor) else tuple(features)
    loose = [i for i, z in enumerate(found) if not z.requires_grad]
    if not found or loose:
        raise InvalidInputError(
            "`features` must be outputs of the trunk with their graph, got "
            f"{f'detached tensors at {loose}' if loose else 'none'}. "
            "Do not detach them before computing the losses."
        )
    return found
