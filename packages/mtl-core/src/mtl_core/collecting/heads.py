"""The heads' gradients, from the backward passes to the update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.collecting.flat import Row, as_real
from mtl_core.collecting.overflow import fits, is_ordinary, times
from mtl_core.collecting.writing import as_grad, in_own_memory
from mtl_core.distributed import is_sharded, local_part, sum_over_ranks_
from mtl_core.errors import InvalidInputError

__all__ = ["HeadGradients", "finite_flag"]


class HeadGradients:
    """One row of gradients per present task, by the heads' parameters.

    Args:
        parameters: of all heads.
        rows: per present task, ``None`` where it does not touch a parameter.
        present: positions of these tasks among all.
        n_tasks: the number of all tasks.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rows: Sequence[Sequence[Tensor | None]],
        present: Sequence[int],
        n_tasks: int,
    ) -> None:
        self.parameters = tuple(parameters)
        # Without heads nothing is collected; one empty row per task keeps rows and tasks side by side.
        self.rows: tuple[Row, ...] = tuple(map(tuple, rows)) or ((),) * len(present)
        self._present = tuple(present)
        self._n_tasks = n_tasks

    @property
    def touched(self) -> list[bool]:
        """Which parameters some present task touches."""
        return [any(row[k] is not None for row in self.rows if row) for k in range(len(self.parameters))]

    def flags(self) -> Tensor:
        """Per task 0 where all of its gradients are finite, else NaN, ``[m]``; on their device, not waited for."""
        groups = [[g for g in row if g is not None] for row in self.rows]
        counts = [len(group) for group in groups]
        if not any(counts):
            return torch.zeros(self._n_tasks, dtype=torch.float64, device=self.parameters[0].device)
        sums = torch.stack(_sums([g for group in groups for g in group]))
        # In few operations: for small heads their number is what this takes.
        if counts.count(counts[0]) == len(counts):
            found = sums.view(len(counts), counts[0]).sum(dim=1, dtype=torch.float64)
        else:
            found = torch.stack([part.sum(dtype=torch.float64) for part in sums.split(counts)])
        # 0, or NaN where the sum is not finite; see finite_flag.
        found = found * 0.0
        if len(self._present) == self._n_tasks:
            return found
        full = found.new_zeros(self._n_tasks)
        for place, task in enumerate(self._present):
            full[task] = found[place]
        return full

    def are_finite(self) -> bool:
        """Whether all are finite for certain: one question for all tasks, which waits for their device."""
        gradients = [g for row in self.rows for g in row if g is not None]
        return not gradients or math.isfinite(float(_joined_sum(gradients)))

    def broken(self) -> list[int]:
        """Positions of the tasks with a gradient that is not finite; reads every entry."""
        return [
            task
            for task, row in zip(self._present, self.rows, strict=True)
            if not all(bool(torch.isfinite(_values(g)).all()) for g in row if g is not None)
        ]

    def scale(self, factor: Tensor) -> None:
        """Multiply by a positive number."""
        self.rows = tuple(tuple(None if g is None else g * factor.to(g.dtype) for g in row) for row in self.rows)

    def scale_tasks(self, factors: Tensor) -> None:
        """Multiply each task's gradients by its factor, ``[m]``."""
        self.rows = tuple(
            tuple(None if g is None else g * factors[task].to(g.dtype) for g in row)
            for task, row in zip(self._present, self.rows, strict=True)
        )

    def totals(self, weights: Tensor | None) -> list[Tensor | None]:
        """The gradient of the sum of losses by each parameter, or of their weighted sum; ``None`` where none has one.

        Args:
            weights: ``[m]``; ``None`` for one each.
        """
        factors = None if weights is None else self._factors(weights.detach())
        found: list[Tensor | None] = [None] * len(self.parameters)
        for task, row in zip(self._present, self.rows, strict=True):
            for k, gradient in enumerate(row):
                if gradient is None:
                    continue
                scaled = gradient if factors is None else times(gradient, factors[task])
                before = found[k]
                # Not in place: autograd may have handed out this tensor for another parameter, too.
                found[k] = scaled if before is None else before + scaled
        return found

    def _factors(self, weights: Tensor) -> Sequence[float | Tensor]:
        """Weights ``[m]`` one by one, as numbers where products have to be formed in float64."""
        if self._are_ordinary(weights):
            return weights.to(self.parameters[0].device).unbind()
        numbers: list[float] = weights.tolist()
        return numbers

    def _are_ordinary(self, weights: Tensor) -> bool:
        # Those on a device are not looked at.
        return weights.device.type != "cpu" or is_ordinary(weights.tolist(), self.parameters)

    def check_weighted(self, weights: Tensor) -> None:
        """Make sure that weights, where they are so large that they might, do not make infinities of finite gradients.

        Args:
            weights: ``[m]``.

        Raises:
            InvalidInputError: they do.
        """
        if not self.parameters or self._are_ordinary(weights):
            return
        for parameter, total in zip(self.parameters, self.totals(weights), strict=True):
            if total is not None and not fits(_values(local_part(total)), parameter.dtype.to_real()):
                raise InvalidInputError(
                    f"`heads` must be 'unit' for these weights, got 'weighted' and {weights.tolist()}: times them, the "
                    f"gradients of the heads leave {parameter.dtype}. Nothing was updated. Multiply the losses by a "
                    "constant, or keep the heads in a wider dtype."
                )

    def write(
        self, weights: Tensor | None, *, group: dist.ProcessGroup | None = None, touched: Sequence[bool] | None = None
    ) -> None:
        """Add the totals to the parameters' ``.grad``.

        Args:
            weights: as for ``totals``.
            group: ranks over whose totals to sum.
            touched: with a group, which parameters some rank touches.
        """
        if not self.parameters:
            return
        found = self.totals(weights)
        if group is not None:
            # All ranks must reduce the same tensors in the same form: zeros where this rank has no gradient, dense
            # where it has rows, since ranks touch different rows.
            summed = [torch.zeros_like(h) if g is None else g for h, g in zip(self.parameters, found, strict=True)]
            summed = [g.to_dense() if g.layout != torch.strided else g.contiguous() for g in summed]
            sum_over_ranks_(summed, group)
            there = [True] * len(summed) if touched is None else touched
            # A zero that no rank has a task for is dropped again: weight decay and momentum would move the parameter.
            found = [g if ok else None for g, ok in zip(summed, there, strict=True)]
            del summed
        # What one task alone touches is its row's own tensor, to which the row refers too.
        for parameter, total in zip(self.parameters, in_own_memory(found, held=1), strict=True):
            if total is None:
                continue
            total = as_grad(parameter, total)
            # A new tensor, never an addition in place: what undoes a step holds the old one by reference.
            parameter.grad = total if parameter.grad is None else parameter.grad + total


def _values(gradient: Tensor) -> Tensor:
    """The stored entries of a gradient, real."""
    stored = gradient._values() if gradient.layout == torch.sparse_coo else gradient
    return as_real(stored)


def finite_flag(gradients: Sequence[Tensor]) -> Tensor:
    """0 if all gradients are finite, else NaN; one pass over them, and no waiting for the device.

    A sum is infinite or NaN where an entry is. It may overflow besides, for entries of 1e16 and more whose squares are
    added up, so that whoever sees the flag has to check the entries before raising an error.
    """
    # Zero times NaN or infinity is NaN, and zero times anything else is zero: no branch, so the host does not wait.
    return _joined_sum(gradients) * 0.0


def _joined_sum(gradients: Sequence[Tensor]) -> Tensor:
    """A sum over the entries of all gradients, or over their squares, in few operations."""
    small: list[Tensor] = []
    rest: list[Tensor] = []
    for gradient in gradients:
        if gradient.numel() <= _SMALL and gradient.layout is torch.strided and not gradient.is_complex():
            small.append(gradient if gradient.ndim == 1 else gradient.reshape(-1))
        else:
            rest.append(gradient)
    # Small ones side by side first: two operations for all of them take half the time of one each.
    sums = _sums(gradients if len(small) < 4 or is_sharded(gradients) else [torch.cat(small), *rest])
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dtype=torch.float64)


_SMALL = 1 << 12
"""Entries up to which a gradient is copied beside others rather than summed by itself."""


def _sums(gradients: Sequence[Tensor]) -> list[Tensor]:
    """A sum over each gradient's entries, or over their squares, all of one dtype."""
    sharded = is_sharded(gradients)
    sums: list[Tensor] = []
    for gradient in gradients:
        own = local_part(gradient) if sharded else gradient
        if own.layout != torch.strided or own.is_complex():
            own = _values(own)
        if own.is_cpu and own.dtype.itemsize >= 4 and own.numel() > _SMALL and own.is_contiguous():
            # Memory is what is waited for, and BLAS reads it best: 0.71 ms for 12 MiB, where `sum` took 0.89.
            vector = own.view(-1)
            sums.append(torch.dot(vector, vector))
            continue
        # Half precision ends at 65,504, which the sum of a few finite entries exceeds.
        sums.append(own.sum() if own.dtype.itemsize >= 4 else own.sum(dtype=torch.float32))
    # One conversion at the end: one for each of them took longer than the sums of a network of small layers.
    if len({each.dtype for each in sums}) > 1:
        sums = [each.to(torch.float64) for each in sums]
    return sums
