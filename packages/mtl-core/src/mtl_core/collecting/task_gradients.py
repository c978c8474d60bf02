"""The gradients of several losses, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core.autocasting import full_precision
from mtl_core.collecting.backward import is_on_host
from mtl_core.collecting.dense import DenseStore
from mtl_core.collecting.exchange import HostCopy, copied_at_once, summed_at_once
from mtl_core.collecting.finite import (
    broken_gradients,
    broken_heads,
    check_finite_gramian,
    check_finite_losses,
    has_finite_entries,
    refuse_too_small,
)
from mtl_core.collecting.heads import HeadGradients
from mtl_core.collecting.overflow import first_unfit
from mtl_core.collecting.scattered import ScatteredStore
from mtl_core.collecting.store import DroppedStore, GradientStore
from mtl_core.distributed import sum_over_ranks_
from mtl_core.errors import InvalidInputError

__all__ = ["TaskGradients"]


class TaskGradients:
    r"""The gradients :math:`g_i = \nabla_\theta L_i` of ``m`` task losses with respect to the shared parameters.

    Made by ``collect``. Rows are tasks; columns are the shared parameters one after the other, each flattened (a
    complex parameter as its real and imaginary parts). A parameter that a task does not touch has a zero entry; a task
    that is absent from the batch has a zero row.

    Args:
        matrix: the Jacobian ``[m, d]``, or a store of gradients in another form.
        parameters: the shared parameters; those of the store, if one is given.
        losses: as the attribute.
        tasks: as the attribute.
        present: as the attribute.
        heads: the heads' gradients, until ``assign_heads`` writes them.
        notes: as the attribute.
        chunk_size: how many tasks were differentiated at once.

    Attributes:
        parameters: the shared parameters, in the order of the columns.
        losses: the losses ``[m]``, detached; NaN for an absent task.
        tasks: the tasks' names (``"0"``, ``"1"``, … if none were given).
        present: positions of the tasks that have a loss in this batch (of this rank).
        group: the process group over which they were averaged, if they were.
        counts: how many of its ranks have each task, ``[m]``.
        notes: what was done otherwise than asked for, and why.
    """

    def __init__(
        self,
        matrix: Tensor | GradientStore,
        parameters: Sequence[Tensor] = (),
        *,
        losses: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        present: Sequence[int] | None = None,
        heads: HeadGradients | None = None,
        notes: Sequence[str] = (),
        chunk_size: int = 1,
    ) -> None:
        self._store = matrix if isinstance(matrix, GradientStore) else DenseStore.of(matrix, parameters)
        self.parameters = self._store.parameters
        n_tasks = self._store.n_tasks
        if losses is None:
            losses = torch.full((n_tasks,), float("nan"), dtype=self.dtype, device=self.parameters[0].device)
        self.losses = losses
        self.tasks = tuple(str(i) for i in range(n_tasks)) if tasks is None else tuple(tasks)
        self.present = tuple(range(n_tasks)) if present is None else tuple(present)
        self.notes = tuple(notes)
        self.group: dist.ProcessGroup | None = None
        self.counts: Tensor | None = None
        self._heads = HeadGradients((), (), self.present, n_tasks) if heads is None else heads
        self._chunk_size = chunk_size
        self._head_flags: Tensor | None = None
        self._heads_in_shards = False
        self._somewhere: Tensor | None = None
        self._heads_touched: list[bool] | None = None

    def __repr__(self) -> str:
        shape, device = (self.n_tasks, self.n_parameters), self.parameters[0].device
        return f"{type(self).__name__}(tasks={self.tasks}, shape={shape}, dtype={self.dtype}, device={device})"

    @property
    def heads(self) -> HeadGradients:
        """The heads' gradients that ``assign_heads`` has yet to write."""
        return self._heads

    @property
    def n_tasks(self) -> int:
        """Number ``m`` of tasks."""
        return self._store.n_tasks

    @property
    def n_parameters(self) -> int:
        """Number ``d`` of shared parameter entries; a complex one counts twice."""
        return self._store.width

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of gradients and updates: the widest among the shared parameters."""
        return self._store.dtype

    @property
    def untouched(self) -> tuple[int, ...]:
        """Positions of the parameters that no present task touches; their ``.grad`` stays ``None``."""
        self._settle()
        return tuple(sorted(self._store.untouched))

    @property
    def present_somewhere(self) -> tuple[int, ...]:
        """Positions of the tasks that some rank has; ``present`` are those of this rank."""
        counts = self._host.counts if self.counts is not None else None
        return self.present if counts is None else tuple(i for i, count in enumerate(counts) if count)

    @property
    def matrix(self) -> Tensor:
        """The Jacobian ``[m, d]``; this rank's columns of it where they are spread over ranks."""
        return self._store.matrix

    @property
    def whole_matrix(self) -> Tensor:
        """The Jacobian ``[m, d]``, for what does not work column by column.

        Raises:
            InvalidInputError: this rank holds some of the columns only.
        """
        # Norms, signs of sums or ranks over some columns are not those of the gradients: each rank would go its own
        # way, and the parameters would still fit together, so that nothing else tells of it.
        if self._store.is_partial:
            raise InvalidInputError(
                "the whole Jacobian must be on this rank to be worked on, got some of its columns, as of a sharded "
                "model or with keep='scattered'. Use a method that needs no more than the Gramian, or replicate the "
                "model and give `group`."
            )
        return self._store.matrix

    @cached_property
    def gramian(self) -> Tensor:
        r"""The Gramian :math:`G = J J^\top`, float64 ``[m, m]``, on the gradients' device; computed once.

        Raises:
            InvalidJacobianError: a gradient in float64 is not zero and too small for its square; looked at on the CPU.
        """
        found = self._store.gramian()
        if found.is_cpu:
            self._refuse_too_small(found)
        return found

    def _refuse_too_small(self, gramian: Tensor) -> None:
        # On several ranks all look at all: an absent task of one may be another's, and they are to raise together.
        index = self.present if self.counts is None else range(self.n_tasks)
        refuse_too_small(gramian, self._store, self.tasks, index)

    @property
    def host_gramian(self) -> Tensor:
        """The Gramian on the CPU, checked.

        This is the one small copy from the device that a step needs; the losses travel with it.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
            NonFiniteGradientError: a gradient is NaN or infinite though its loss is finite, or its squared norm leaves
                float64.
            InvalidJacobianError: one is not zero and too small for its square.
        """
        host = self._host
        check_finite_losses(host.losses, self.tasks, self.present_somewhere)
        check_finite_gramian(host, self._store, self.tasks, further=self._together)
        if not self.gramian.is_cpu:
            self._refuse_too_small(host.gramian)
        broken = broken_heads(host, self._heads, believed=self.group is not None or self._heads_in_shards)
        if broken:
            self._refuse_heads(broken)
        return host.gramian

    @cached_property
    def _host(self) -> HostCopy:
        host = copied_at_once(self.gramian, self.losses, self.counts, self._head_flags, self._somewhere)
        if self._somewhere is not None:
            # A parameter takes part if some rank touches it.
            self._store.touched = host.touched[: len(self.parameters)]
            self._heads_touched = host.touched[len(self.parameters) :]
            self._somewhere = None
        return host

    @property
    def _together(self) -> str:
        """What to say of tasks that were differentiated together: all are NaN where one is, as zero times NaN is."""
        size = self._chunk_size
        return f" {size} tasks at a time were differentiated: chunk_size=1 tells which." if size > 1 else ""

    def _refuse_heads(self, broken: Sequence[int]) -> None:
        names = [self.tasks[i] for i in broken]
        raise broken_gradients(names, of=" of the heads", further=self._together * (len(names) > 1))

    def check_heads(self, *, shards: dist.ProcessGroup | None = None) -> None:
        """Have ``host_gramian`` look at the heads' gradients too; costs one pass over them, no wait for the device.

        Args:
            shards: the ranks over which they are spread, if they are.
        """
        if self._heads.parameters and self._head_flags is None:
            self._head_flags = self._heads.flags()
            self._heads_in_shards = shards is not None
            if shards is not None:
                sum_over_ranks_([self._head_flags], shards)

    def refuse_broken_heads(self) -> None:
        """Make sure now that the heads' gradients are finite; reads them.

        Raises:
            NonFiniteGradientError: naming the tasks whose are not.
        """
        if not self._heads.parameters or (self._head_flags is None and self._heads.are_finite()):
            return
        self.check_heads()
        if self._head_flags is not None and not bool(torch.isfinite(self._head_flags).all()):
            broken = self._heads.broken()
            if broken:
                self._refuse_heads(broken)

    @property
    def norms(self) -> Tensor:
        r"""Gradient norms :math:`\|g_i\|`, float64 ``[m]``."""
        return self.gramian.diagonal().clamp(min=0.0).sqrt()

    @property
    def mean(self) -> Tensor:
        r"""The mean gradient :math:`g_0 = \frac1m \sum_i g_i`, ``[d]``."""
        return self._store.mean()

    @full_precision
    def combine(self, weights: Tensor) -> Tensor:
        r"""The combination :math:`g_w = J^\top w`.

        Args:
            weights: ``[m]``, of any device and dtype.

        Returns:
            ``[d]`` in the Jacobian's dtype.

        Raises:
            InvalidInputError: there is not one finite weight per task.
        """
        return self._store.combine(self.check_weights(weights), self._known_gramian)

    @property
    def _known_gramian(self) -> Tensor | None:
        """The Gramian on the CPU if somebody has asked for it already."""
        # Looked for and not asked for: asking would copy it from the device, which not every caller needs.
        return self._host.gramian if "_host" in self.__dict__ else None

    def check_weights(self, weights: Tensor) -> Tensor:
        """One finite weight per task, without its graph; values are read on the CPU only.

        Raises:
            InvalidInputError: otherwise.
        """
        if weights.shape != (self.n_tasks,):
            raise InvalidInputError(
                f"`weights` must hold one weight per task, shape ({self.n_tasks},), got {tuple(weights.shape)}."
            )
        if is_on_host(weights) and not all(map(math.isfinite, weights.tolist())):
            raise InvalidInputError(f"`weights` must be finite, got {weights.tolist()}.")
        return weights.detach()

    @property
    def kept(self) -> GradientStore:
        """The gradients in the form in which they are held."""
        return self._store

    def assign(self, vector: Tensor, *, accumulate: bool = False) -> None:
        """Write ``vector`` into the parameters' ``.grad``; on the CPU it is looked at first.

        Each ``.grad`` is a view of ``vector`` where the parameter's dtype and strides allow; where not, it is copied
        into the parameter's own layout, as ``loss.backward()`` would leave it. Parameters that no present task touches
        keep ``.grad = None``. A parameter of an embedding whose gradients came sparse gets a sparse gradient again if
        the update lies in the rows that were touched.

        Args:
            vector: the update direction (a gradient, to be descended), ``[d]``.
            accumulate: add to what is there instead of replacing it, for loops that sum gradients over several
                batches.

        Raises:
            InvalidJacobianError: ``vector`` does not have one entry per column.
            NonFiniteGradientError: it is not finite, nor are the gradients.
            InvalidInputError: it is not finite though they are, or leaves the dtype of a parameter. Both errors on the
                CPU only, as elsewhere it would mean waiting for the device; nothing is written then.
        """
        self._store.check_width(vector)
        vector = vector.detach()
        if is_on_host(vector):
            self._refuse_unfit(first_unfit(self.parameters, vector))
        self.write(vector, accumulate=accumulate)

    def write(self, vector: Tensor, *, accumulate: bool = False) -> None:
        """As ``assign``, for what is known to be finite, or is meant not to be."""
        self._settle()
        self._store.write(vector, accumulate=accumulate)

    @full_precision
    def assign_combination(self, weights: Tensor) -> None:
        r"""Write :math:`J^\top w` into the parameters' ``.grad``, in whatever form is cheapest.

        Args:
            weights: ``[m]``.

        Raises:
            InvalidInputError: as from ``assign``, and where there is not one finite weight per task.
            NonFiniteGradientError: as from ``assign``.
        """
        before = [p.grad for p in self.parameters]
        self.write_combination(weights)
        if not is_on_host(self.parameters[0]):
            return
        # Looked at where it was written: the forms in which it is cheapest are not those of a vector.
        unfit = next((p.dtype for p in self.parameters if p.grad is not None and not has_finite_entries(p.grad)), None)
        if unfit is not None:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient
            self._refuse_unfit(unfit)

    @full_precision
    def write_combination(self, weights: Tensor, *, factor: Tensor | None = None) -> None:
        """As ``assign_combination``, for what is known to be finite.

        Args:
            weights: ``[m]``.
            factor: a number to multiply it by, such as a loss scale.
        """
        self._settle()
        self._store.write_combination(self.check_weights(weights), self._known_gramian, factor)

    def _refuse_unfit(self, unfit: torch.dtype | None) -> None:
        """Say what is wrong with an update that does not fit in a parameter's dtype, if there is one."""
        if unfit is None:
            return
        if not self._store.is_partial:  # there every rank would have to be asked
            _ = self.host_gramian  # names the tasks whose gradients are not finite
        raise InvalidInputError(
            f"an update must be finite and fit in {unfit}, got one that does not for finite gradients. Nothing was "
            "written. Look at the method that made it, and at the weights' size."
        )

    def average(self, group: dist.ProcessGroup, *, scattered: bool = False) -> None:
        """Replace gradients and losses by their means over the ranks of a group that have the task.

        The heads' gradients are summed when they are assigned, so that ranks may differ in which tasks they have.

        Args:
            group: the ranks.
            scattered: keep an equal part of the columns on each.

        Raises:
            InvalidInputError: the Jacobian is not kept.
        """
        if not isinstance(self._store, DenseStore):
            raise InvalidInputError("the Jacobian must be kept to be averaged over ranks. Use keep='jacobian'.")
        share = self._average_losses(group)
        if scattered:
            self._store = ScatteredStore(self._store, share, group)
        else:
            self._store.average(share, group)
        self._forget_gramian()

    def _average_losses(self, group: dist.ProcessGroup) -> Tensor:
        """The small part of ``average``; returns the factor ``[m]`` of each task's gradient once it is summed."""
        touched = [*self._store.touched, *self._heads.touched]
        sums = summed_at_once(self.losses, self.present, self._head_flags, touched, group)
        self.losses = sums.losses / sums.counts
        # A task that no rank has: its gradients are zeros, and zero times infinity would be NaN.
        share = 1.0 / sums.counts.clamp(min=1.0)
        self._heads.scale_tasks(share)
        if self._head_flags is not None:
            self._head_flags = sums.head_flags
        self._somewhere = sums.touched
        self.counts, self.group = sums.counts, group
        return share

    def assign_heads(self, weights: Tensor | None = None) -> None:
        """Add the heads' gradients to their ``.grad``: of each task's own loss, or weighted.

        Args:
            weights: ``[m]``; ``None`` for one each.
        """
        self._settle()
        self._heads.write(weights, group=self.group, touched=self._heads_touched)

    def rescale(self, factor: Tensor) -> None:
        """Multiply the gradients, those of the heads included, by a positive number; the losses stay."""
        self._settle()
        self._forget_gramian()
        self._store.rescale(factor)
        self._heads.scale(factor)

    def rescale_heads(self, factor: Tensor) -> None:
        """Multiply the heads' gradients by a positive number."""
        self._heads.scale(factor)

    def drop_heads(self) -> None:
        """Forget the heads' gradients, which frees their memory."""
        self._heads = HeadGradients((), (), self.present, self.n_tasks)
        self._head_flags = None

    def drop(self) -> None:
        """Let go of the gradients, or the graph that makes them, which frees their memory.

        Losses, the Gramian if it was asked for, and which parameters were touched stay.
        """
        self._settle()
        # Not None: what is asked of dropped gradients is refused in words.
        self._store = DroppedStore(self.parameters, self.n_tasks, self._store.touched)
        self.drop_heads()

    def _settle(self) -> None:
        """Make sure that it is known which parameters some rank touches; it travels with the Gramian."""
        if self._somewhere is not None:
            _ = self._host

    def _forget_gramian(self) -> None:
        # What cached_property keeps lies in the instance's dictionary.
        self.__dict__.pop("gramian", None)
        self.__dict__.pop("_host", None)
