"""Three independent batches in one step, for methods whose weights must not be biased by noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, optim
from torch.utils import _pytree as pytree

from mtl_aggregators.bases.facts import Facts
from mtl_core import (
    InvalidInputError,
    MicroBatches,
    NonFiniteGradientError,
    Problem,
    StepOptions,
    StepReport,
    TaskGradients,
    step,
)
from mtl_core.extension import (
    FixedWeights,
    SavedState,
    begin,
    checked_gramian,
    collect_batch,
    finish,
    guarded,
    ranks_of,
    together,
)

__all__ = ["ThreeBatchMethod", "ThreeBatches", "in_threes"]


class ThreeBatches(NamedTuple):
    """Three batches drawn independently; what ``SDMGrad`` and ``MoDo`` step on.

    Attributes:
        left: for the left factor of the weights' matrix.
        right: for its right factor.
        update: for the update itself.
    """

    left: Any
    right: Any
    update: Any


def in_threes(batches: Iterable[Any]) -> Iterator[ThreeBatches]:
    """Group consecutive batches of a loader by three; what is left over at the end is dropped.

    Args:
        batches: any iterable of batches.

    Example:
        >>> [tuple(three) for three in in_threes(range(7))]
        [(0, 1, 2), (3, 4, 5)]
    """
    iterator = iter(batches)
    # zip takes three in turn from one and the same iterator.
    for left, right, update in zip(iterator, iterator, iterator, strict=False):
        yield ThreeBatches(left, right, update)


def split_batch(batch: Any) -> ThreeBatches:
    """Cut each tensor of a batch into three along its first dimension.

    Raises:
        InvalidInputError: the batch has no tensor, or one with fewer than three rows, or tensors of unequal length.
    """
    leaves, structure = pytree.tree_flatten(batch)
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or min(sizes) < 3:
        raise InvalidInputError(
            "`batch` must be ThreeBatches, or hold tensors that share a first dimension of at least 3, got first "
            f"dimensions {sorted(sizes)}. Group a loader's batches with mtl_aggregators.in_threes(loader)."
        )
    parts = [torch.tensor_split(leaf, 3) if isinstance(leaf, Tensor) else (leaf,) * 3 for leaf in leaves]
    return ThreeBatches(*(pytree.tree_unflatten(list(chosen), structure) for chosen in zip(*parts, strict=True)))


class ThreeBatchMethod(SavedState, ABC):
    r"""A step whose weights come from the gradients of two batches, and its update from a third.

    The batch is ``ThreeBatches``, or is cut into three equal parts along the first dimension of its tensors. The laws
    in ``facts`` are those of :math:`J^\top w(J J^\top)`, the update where the three batches agree.
    """

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""

    @abstractmethod
    def weigh(self, cross: Tensor) -> Tensor:
        r"""The weights ``[m]`` of :math:`A = J_1 J_2^\top`, float64 ``[m, m]``."""

    def update_batch(self, batch: Any, /) -> Any:
        """The third of the batches, which makes the update."""
        return (batch if isinstance(batch, ThreeBatches) else split_batch(batch)).update

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step; the report's losses are those of the third batch.

        Raises:
            InvalidInputError: ``batch`` is not three batches and cannot be cut into three.
        """
        options = StepOptions() if options is None else options
        # Both are refused before `guarded`, which is alike on all ranks: they come from the call.
        if isinstance(batch, MicroBatches):
            raise InvalidInputError(
                f"{type(self).__name__} needs three independent batches, got MicroBatches, which are parts of one. "
                "Give ThreeBatches."
            )
        if options.keep != "jacobian" or options.per != "model":
            raise InvalidInputError(
                f"{type(self).__name__} multiplies two Jacobians, which needs keep='jacobian' and per='model', got "
                f"keep={options.keep!r} and per={options.per!r}."
            )
        with guarded(problem, optimizer, self, options):
            notes = begin(problem, optimizer, options)
            with together(ranks_of(problem, options)):
                three = batch if isinstance(batch, ThreeBatches) else split_batch(batch)
            report = self._step_on(three, problem, optimizer, options)
        return replace(report, events=(*notes, *report.events))

    def _step_on(
        self, three: ThreeBatches, problem: Problem, optimizer: optim.Optimizer, options: StepOptions
    ) -> StepReport:
        # The heads' gradients of the first two are not used, and need not be looked at.
        alone = replace(options, check_gradients=False)
        found = [collect_batch(problem, part, options=alone) for part in three[:2]]
        for gradients in found:
            gradients.drop_heads()
        with together(ranks_of(problem, options)):
            cross = _cross(*found)
        if not bool(torch.isfinite(cross).all()):
            for part, gradients in zip(three[:2], found, strict=True):
                try:
                    checked_gramian(problem, part, gradients, options)  # says whose it is
                except NonFiniteGradientError:
                    if not options.is_scaled:
                        raise
                    # The scale has grown too large for this part: the step is skipped, as where the update overflows.
                    return finish(problem, part, optimizer, FixedWeights(), gradients, options=options)
        # Two Jacobians are let go of before the third is made.
        del gradients, found
        with together(ranks_of(problem, options)):
            weights = self.weigh(cross)
        return step(problem, three.update, optimizer, FixedWeights(weights), **vars(options))


def _cross(left: TaskGradients, right: TaskGradients) -> Tensor:
    r"""The matrix :math:`J_1 J_2^\top` ``[m, m]`` in float64, on the CPU."""
    one_side, other_side = left.whole_matrix, right.whole_matrix
    cross = torch.zeros(left.n_tasks, left.n_tasks, dtype=torch.float64, device=one_side.device)
    # In blocks of columns, so that no float64 copy of a Jacobian is made.
    for one, other in zip(one_side.split(_COLUMNS, dim=1), other_side.split(_COLUMNS, dim=1), strict=True):
        cross.addmm_(one.double(), other.double().T)
    return cross.cpu()


_COLUMNS = 1 << 16
"""Columns of two Jacobians that are multiplied at a time."""
