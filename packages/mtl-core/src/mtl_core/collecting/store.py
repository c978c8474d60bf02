"""The operations that every store of the shared parameters' gradients has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from mtl_core.collecting.flat import flat_size, widest_dtype
from mtl_core.collecting.writing import write_vector
from mtl_core.errors import InvalidInputError, InvalidJacobianError

__all__ = ["DroppedStore", "GradientStore"]


class GradientStore(ABC):
    """The gradients of ``m`` tasks by the shared parameters; subclasses differ in how they keep them.

    Attributes:
        parameters: the shared parameters, in the order of the columns.
        n_tasks: the number of rows.
        touched: which parameters some present task touches. The others take no part in an update.
        is_partial: whether ``matrix`` holds this rank's columns only.
    """

    is_partial = False

    def __init__(self, parameters: Sequence[Tensor], n_tasks: int, touched: Sequence[bool] | None = None) -> None:
        self.parameters = tuple(parameters)
        self.n_tasks = n_tasks
        self.touched = [True] * len(self.parameters) if touched is None else list(touched)

    @cached_property
    def width(self) -> int:
        """Number of entries of an update that ``combine`` returns and ``write`` takes."""
        return sum(map(flat_size, self.parameters))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of updates."""
        return widest_dtype(self.parameters)

    @property
    @abstractmethod
    def matrix(self) -> Tensor:
        """The Jacobian ``[m, d]``.

        Raises:
            InvalidInputError: it is not kept.
        """

    @abstractmethod
    def gramian(self) -> Tensor:
        """The Gramian ``[m, m]`` in float64."""

    def largest(self, task: int) -> float:
        """The largest entry of a task's gradient by its absolute value."""
        unit = torch.zeros(self.n_tasks, dtype=torch.float64, device="cpu")
        unit[task] = 1.0
        return float(self.combine(unit, None).abs().max())

    @abstractmethod
    def combine(self, weights: Tensor, gramian: Tensor | None) -> Tensor:
        """The weighted sum of the gradients.

        Args:
            weights: ``[m]``, checked.
            gramian: the Gramian on the CPU, if it is known, by which cancellation is seen beforehand.
        """

    @abstractmethod
    def rescale(self, factor: Tensor) -> None:
        """Multiply the gradients by a positive number."""

    def mean(self) -> Tensor:
        """The mean gradient."""
        return self.combine(torch.full((self.n_tasks,), 1.0 / self.n_tasks, dtype=torch.float64, device="cpu"), None)

    def write_combination(self, weights: Tensor, gramian: Tensor | None, factor: Tensor | None) -> None:
        """Write the weighted sum, times a factor if there is one, into the parameters' ``.grad``."""
        vector = self.combine(weights, gramian)
        self.write(vector if factor is None else vector * factor.to(vector.dtype))

    def write(self, vector: Tensor, *, accumulate: bool = False) -> None:
        """Write an update into the parameters' ``.grad``."""
        self.check_width(vector)
        write_vector(self.parameters, vector, skip=self.untouched, accumulate=accumulate)

    @property
    def untouched(self) -> frozenset[int]:
        """Positions of the parameters that no present task touches."""
        return frozenset(k for k, touched in enumerate(self.touched) if not touched)

    def check_width(self, vector: Tensor) -> None:
        """Make sure that an update has one entry per column that this rank holds."""
        if vector.shape != (self.width,):
            raise InvalidJacobianError(
                f"`vector` must have shape ({self.width},), one entry per shared parameter entry, got "
                f"{tuple(vector.shape)}."
            )


class DroppedStore(GradientStore):
    """Gradients that were used up: which parameters they touched is known still, and nothing else."""

    @property
    def matrix(self) -> NoReturn:
        """There is none.

        Raises:
            InvalidInputError: always, as from all that asks for the gradients.
        """
        self._refuse()

    def gramian(self) -> NoReturn:
        """There is none."""
        self._refuse()

    def combine(self, weights: Tensor, gramian: Tensor | None) -> NoReturn:
        """There is none."""
        self._refuse()

    def rescale(self, factor: Tensor) -> NoReturn:
        """There are none."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InvalidInputError(
            "`gradients` must be there to be read, got those of a step that was made, which has let go of them. Read "
            "them before the step, or collect them again."
        )
