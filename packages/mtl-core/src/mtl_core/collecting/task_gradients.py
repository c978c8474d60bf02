"""The gradients of several losses, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.collecting.backward import check_finite_losses
from mtl_core.collecting.flat import flat_size, widest_dtype
from mtl_core.collecting.gramian import cancels, gramian_of, weighted_sum
from mtl_core.collecting.rows import GradientRows
from mtl_core.distributed import mean_over_tasks_present_, sum_over_ranks_
from mtl_core.errors import InvalidInputError, InvalidJacobianError

__all__ = ["TaskGradients"]


class TaskGradients:
    r"""The gradients :math:`g_i = \nabla_\theta L_i` of ``m`` task losses with respect to the shared parameters.

    Made by ``collect``. Rows are tasks; columns are the shared parameters one after the other, each flattened (a
    complex parameter as its real and imaginary parts). A parameter that a task does not touch has a zero entry; a task
    that is absent from the batch has a zero row.

    Attributes:
        parameters: the shared parameters, in the order of the columns.
        losses: the losses ``[m]``, detached; NaN for an absent task.
        tasks: the tasks' names (``"0"``, ``"1"``, … if none were given).
        present: positions of the tasks that have a loss in this batch (of this rank).
        group: the process group over which they were averaged, if they were.
        counts: how many of its ranks have each task, ``[m]``.
        notes: what was done otherwise than asked for, and why.
        untouched: positions of the parameters that no task touches, as far as it is known.
    """

    def __init__(
        self,
        matrix: Tensor | GradientRows,
        parameters: Sequence[Tensor],
        *,
        losses: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        present: Sequence[int] | None = None,
        heads: Sequence[Tensor] = (),
        head_gradients: Sequence[Sequence[Tensor | None]] = (),
        notes: Sequence[str] = (),
        untouched: Sequence[int] = (),
    ) -> None:
        self.notes = tuple(notes)
        self.untouched = tuple(untouched)
        self.parameters = tuple(parameters)
        self._rows = matrix if isinstance(matrix, GradientRows) else None
        self._matrix = None if isinstance(matrix, GradientRows) else matrix
        n_tasks = len(matrix.rows) if isinstance(matrix, GradientRows) else len(matrix)
        if self._matrix is not None and self._matrix.shape[1:] != (self.n_parameters,):
            raise InvalidJacobianError(
                f"`matrix` must have one column per shared parameter entry, {self.n_parameters}, got shape "
                f"{tuple(self._matrix.shape)}."
            )
        if losses is None:
            losses = torch.full((n_tasks,), float("nan"), dtype=self.dtype, device=self.parameters[0].device)
        self.losses = losses
        self.tasks = tuple(str(i) for i in range(n_tasks)) if tasks is None else tuple(tasks)
        self.present = tuple(range(n_tasks)) if present is None else tuple(present)
        self.group: dist.ProcessGroup | None = None
        self.counts: Tensor | None = None
        self._heads = tuple(heads)
        self._head_gradients = tuple(tuple(row) for row in head_gradients) or tuple(() for _ in self.present)

    def __repr__(self) -> str:
        shape, device = (self.n_tasks, self.n_parameters), self.parameters[0].device
        return f"{type(self).__name__}(tasks={self.tasks}, shape={shape}, dtype={self.dtype}, device={device})"

    @property
    def head_gradients(self) -> tuple[tuple[Tensor | None, ...], ...]:
        """The heads' gradients that ``assign_heads`` has yet to write, one row per present task."""
        return self._head_gradients

    @property
    def n_tasks(self) -> int:
        """Number ``m`` of tasks."""
        return len(self.tasks)

    @property
    def n_parameters(self) -> int:
        """Number ``d`` of shared parameter entries; a complex one counts twice."""
        return sum(flat_size(p) for p in self.parameters)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of gradients and updates: the widest among the shared parameters."""
        return widest_dtype(self.parameters)

    @property
    def matrix(self) -> Tensor:
        """The Jacobian ``[m, d]``."""
        if self._rows is not None:
            self._matrix, self._rows = self._rows.matrix(), None
        assert self._matrix is not None
        return self._matrix

    @cached_property
    def gramian(self) -> Tensor:
        r"""The Gramian :math:`G = J J^\top`, float64 ``[m, m]``, on the gradients' device; computed once."""
        return gramian_of(self.matrix) if self._rows is None else self._rows.gramian()

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
        columns = [gramian, self.losses.to(gramian).unsqueeze(1)]
        if self.counts is not None:
            columns.append(self.counts.to(gramian).unsqueeze(1))
        packed = torch.cat(columns, dim=1).cpu()
        counts = None if self.counts is None else packed[:, -1].tolist()
        there = self.present if counts is None else [i for i, count in enumerate(counts) if count]
        check_finite_losses(packed[:, self.n_tasks], self.tasks, there)
        host = packed[:, : self.n_tasks].contiguous()
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
        self._check_weights(weights)
        host = self.__dict__.get("host_gramian")
        if self._rows is not None and weights.device.type == "cpu" and not cancels(weights, host, self.dtype):
            return self._rows.combine(weights.detach())
        return weighted_sum(self.matrix, weights.detach(), host)

    def _check_weights(self, weights: Tensor) -> Tensor:
        """The weights, checked, on the gradients' device and of their dtype."""
        if weights.shape != (self.n_tasks,):
            raise InvalidInputError(
                f"`weights` must hold one weight per task, shape ({self.n_tasks},), got {tuple(weights.shape)}."
            )
        if weights.device.type == "cpu" and not bool(torch.isfinite(weights).all()):
            raise InvalidInputError(f"`weights` must be finite, got {weights.tolist()}.")
        return weights.detach().to(device=self.parameters[0].device, dtype=self.dtype, non_blocking=True)

    def assign(self, vector: Tensor) -> None:
        """Write ``vector`` into the parameters' ``.grad``, replacing what is there.

        Each ``.grad`` is a view of ``vector``: nothing is copied unless a parameter's dtype differs.

        Args:
            vector: the update direction (a gradient, to be descended), ``[d]``.

        Raises:
            InvalidJacobianError: ``vector`` does not have one entry per column.
        """
        if vector.shape != (self.n_parameters,):
            raise InvalidJacobianError(
                f"`vector` must have shape ({self.n_parameters},), one entry per shared parameter entry, got "
                f"{tuple(vector.shape)}."
            )
        start = 0
        for parameter in self.parameters:
            size = flat_size(parameter)
            part = vector[start : start + size]
            if parameter.is_complex():
                part = torch.view_as_complex(part.view(-1, 2))
            parameter.grad = part.view(parameter.shape).to(parameter.dtype)
            start += size

    def average(self, group: dist.ProcessGroup) -> None:
        """Replace gradients and losses by their means over the ranks of a group that have the task.

        The heads' gradients are summed when they are assigned, so that ranks may differ in which tasks they have.
        """
        share = self.average_losses(group)
        sum_over_ranks_([self.matrix], group)
        self.matrix.mul_(share.to(self.matrix.dtype).unsqueeze(1))

    def average_losses(self, group: dist.ProcessGroup) -> Tensor:
        """The small part of ``average``; returns the factor ``[m]`` of each task's gradient once it is summed."""
        self.losses, counts = mean_over_tasks_present_(self.losses, self.present, group)
        share = 1.0 / counts.clamp(min=1.0)
        self._head_gradients = tuple(
            tuple(None if g is None else g * share[task].to(g.dtype) for g in row)
            for task, row in zip(self.present, self._head_gradients, strict=True)
        )
        self.counts = counts
        self.group = group
        return share

    def assign_heads(self, weights: Tensor | None = None) -> None:
        """Add the heads' gradients to their ``.grad``: of each task's own loss, or weighted.

        Args:
            weights: ``[m]``; ``None`` for one each.
        """
        if not self._heads:
            return
        moved = None if weights is None else weights.detach().to(self._heads[0].device).unbind()
        totals: list[Tensor | None] = [None] * len(self._heads)
        for task, row in zip(self.present, self._head_gradients, strict=True):
            for k, gradient in enumerate(row):
                if gradient is None:
                    continue
                scaled = gradient if moved is None else gradient * moved[task].to(gradient.dtype)
                before = totals[k]
                totals[k] = scaled if before is None else before + scaled
        if self.group is not None:
            summed = [torch.zeros_like(h) if g is None else g for h, g in zip(self._heads, totals, strict=True)]
            sum_over_ranks_(summed, self.group)
            totals = [*summed]
        for head, total in zip(self._heads, totals, strict=True):
            if total is not None:
                head.grad = total if head.grad is None else head.grad + total

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
