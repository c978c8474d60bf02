"""Task gradients that are known by their Gramian alone; what is made of them costs one more backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from mtl_core.collecting.flat import Row, flat_size, flatten_into, pick
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.graph import Outputs
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.errors import InvalidInputError

__all__ = ["DeferredGradients", "through_features", "weighted_backward"]

WeightedBackward = Callable[[Tensor], Sequence[Tensor | None]]
"""Weights ``[m]`` to the gradient of the weighted loss by each shared parameter."""


class DeferredGradients(TaskGradients):
    """As ``TaskGradients``, without the Jacobian ``[m, d]``.

    Made by ``collect(..., keep="gramian")`` and ``keep="features"``. Holds the losses' graph, and with it their
    activations, until it is itself forgotten.
    """

    def __init__(
        self,
        gramian: Tensor,
        backward: WeightedBackward,
        parameters: Sequence[Tensor],
        *,
        losses: Tensor,
        tasks: Sequence[str],
        present: Sequence[int],
        heads: Sequence[Tensor] = (),
        head_gradients: Sequence[Sequence[Tensor | None]] = (),
    ) -> None:
        self._matrix = None
        self._rows = None
        self._gramian = gramian
        self._backward = backward
        self.notes = ()
        self.untouched = ()
        self.parameters = tuple(parameters)
        self.losses = losses
        self.tasks = tuple(tasks)
        self.present = tuple(present)
        self.group = None
        self.counts = None
        self._heads = tuple(heads)
        self._head_gradients = tuple(tuple(row) for row in head_gradients) or tuple(() for _ in self.present)

    @property
    def matrix(self) -> NoReturn:
        """There is none.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError(
            "`matrix` must be collected to be read, got gradients kept as their Gramian only. "
            "Use keep='jacobian', or a method that needs no more than the Gramian."
        )

    @cached_property
    def gramian(self) -> Tensor:
        """The Gramian, float64 ``[m, m]``."""
        return self._gramian

    @property
    def mean(self) -> Tensor:
        """The mean gradient ``[d]``, by a backward pass."""
        return self.combine(torch.full((self.n_tasks,), 1.0 / self.n_tasks, dtype=torch.float64))

    def combine(self, weights: Tensor) -> Tensor:
        r"""The combination :math:`\nabla_\theta \sum_i w_i L_i`, by one backward pass."""
        gradients = self._backward(self._check_weights(weights))
        vector = torch.empty(self.n_parameters, dtype=self.dtype, device=self.parameters[0].device)
        flatten_into(vector, gradients, self.parameters)
        return vector

    def rescale(self, factor: Tensor) -> None:
        """Multiply losses and gradients, those of the heads included, by a positive number."""
        scale = factor.to(self._gramian)
        self._gramian = self._gramian * scale * scale
        backward = self._backward
        self._backward = lambda weights: backward(weights * factor.to(weights))
        self.__dict__.pop("gramian", None)
        self.__dict__.pop("host_gramian", None)
        self.losses = self.losses * factor
        self.rescale_heads(factor)


def weighted_backward(outputs: Outputs, index: Sequence[int], shared: Sequence[Tensor]) -> WeightedBackward:
    """One backward pass of the weighted losses, through a graph that is kept."""

    def backward(weights: Tensor) -> Sequence[Tensor | None]:
        losses = outputs if isinstance(outputs, Tensor) else torch.stack(outputs)
        seed = pick(weights, index).to(losses.dtype)
        return torch.autograd.grad([losses], shared, [seed], retain_graph=True, allow_unused=True)

    return backward


def through_features(
    at_features: Sequence[Row], features: Sequence[Tensor], index: Sequence[int], shared: Sequence[Tensor]
) -> tuple[Tensor, WeightedBackward]:
    """The Gramian of the gradients by the features, and a backward pass through the trunk for their combination."""
    size = sum(flat_size(z) for z in features)
    matrix = torch.empty(len(at_features), size, dtype=features[0].dtype.to_real(), device=features[0].device)
    for k, row in enumerate(at_features):
        flatten_into(matrix[k], row, features)

    def backward(weights: Tensor) -> Sequence[Tensor | None]:
        combined = pick(weights, index).to(matrix.dtype) @ matrix
        parts = torch.split(combined, [flat_size(z) for z in features])
        seeds = [
            (torch.view_as_complex(part.view(-1, 2)) if z.is_complex() else part).view(z.shape).to(z.dtype)
            for part, z in zip(parts, features, strict=True)
        ]
        return torch.autograd.grad(features, shared, seeds, retain_graph=True, allow_unused=True)

    return gramian_of(matrix), backward
