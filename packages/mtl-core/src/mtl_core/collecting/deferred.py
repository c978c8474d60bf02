"""Task gradients of which only the Gramian is kept; a weighted sum of them costs one more backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from mtl_core.collecting.backward import is_on_host
from mtl_core.collecting.flat import Row, as_real, flat_size, flatten_into, pick
from mtl_core.collecting.gramian import gramian_of, weighted_sum
from mtl_core.collecting.graph import Outputs
from mtl_core.collecting.overflow import is_ordinary, times
from mtl_core.collecting.store import GradientStore
from mtl_core.collecting.writing import in_own_memory, put
from mtl_core.errors import InvalidInputError

__all__ = ["DeferredStore", "through_features", "weighted_backward"]

WeightedBackward = Callable[[Tensor], Sequence[Tensor | None]]
"""Weights ``[m]`` to the gradient of the weighted loss by each shared parameter."""


class DeferredStore(GradientStore):
    """The Gramian of the gradients, and a function that computes weighted sums of them by a backward pass.

    Made by ``collect(..., keep="gramian")`` and ``keep="features"``. Holds the losses' graph, and with it their
    activations, until it is itself forgotten.

    Args:
        gramian: float64 ``[m, m]``.
        backward: from weights ``[m]`` to the gradient of the weighted loss.
        parameters: the shared parameters.
        touched: which of them some present task touches.
        starts: what the backward pass starts from, in whose dtype weights enter it.
        is_exact: whether the Gramian claims to be that of the gradients, so that it is held to what the backward pass
            gives.
    """

    def __init__(
        self,
        gramian: Tensor,
        backward: WeightedBackward,
        parameters: Sequence[Tensor],
        touched: Sequence[bool],
        *,
        starts: Sequence[Tensor],
        is_exact: bool = False,
    ) -> None:
        super().__init__(parameters, len(gramian), touched)
        self._gramian = gramian
        self._backward = backward
        self._starts = tuple(starts)
        self._is_exact = is_exact

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

    def gramian(self) -> Tensor:
        """The Gramian, float64 ``[m, m]``."""
        return self._gramian

    def combine(self, weights: Tensor, gramian: Tensor | None) -> Tensor:
        r"""The combination :math:`\nabla_\theta \sum_i w_i L_i`, by one backward pass."""
        vector = torch.empty(self.width, dtype=self.dtype, device=self.parameters[0].device)
        flatten_into(vector, self._weighted_sum(weights, None), self.parameters)
        return vector

    def write_combination(self, weights: Tensor, gramian: Tensor | None, factor: Tensor | None) -> None:
        """Write the gradients of the backward pass without joining them in a vector; sparse ones stay sparse."""
        found = self._weighted_sum(weights, factor)
        # All at once, for two parameters may have been given one tensor.
        for k, (parameter, gradient) in enumerate(zip(self.parameters, in_own_memory(found), strict=True)):
            if gradient is None or not self.touched[k]:
                parameter.grad = None
            else:
                put(parameter, gradient, accumulate=False)

    def _weighted_sum(self, weights: Tensor, factor: Tensor | None) -> Sequence[Tensor | None]:
        """The gradient of the weighted loss, times a factor if there is one, by each parameter."""
        scale = self._scale(weights)
        moved = self._moved(weights if scale == 1.0 else weights.double() / scale)
        if factor is not None:
            # Into the m weights: multiplying the d gradients would be one more pass over them.
            moved = moved * factor.to(moved)
        found = self._backward(moved)
        self._check(found, moved)
        return found if scale == 1.0 else [None if g is None else times(g, scale) for g in found]

    def _scale(self, weights: Tensor) -> float:
        """By what to divide the weights on their way through the graph; a power of two, which rounds nothing.

        Weights with a sum of 1 give no larger gradients anywhere in the graph than the tasks' own, which were finite.
        """
        if not is_on_host(weights):
            return 1.0
        numbers = weights.tolist()
        if is_ordinary(numbers, self._starts):
            return 1.0
        _, exponent = math.frexp(max(map(abs, numbers)))
        # float64 ends at 2 to the 1024th.
        return math.ldexp(1.0, min(exponent + len(numbers).bit_length(), 1000))

    def _check(self, found: Sequence[Tensor | None], weights: Tensor) -> None:
        """Hold the Gramian to the one combination that an ordinary backward pass gives: its square is wᵀGw.

        The sweep cuts the graph, and autograd calls a hook on a tensor both where the tensor is captured at a cut and
        where the next part starts from it. Such hooks are not to be seen in the graph; that they had doubled a gradient
        shows here, before anything is written. On the CPU only, as elsewhere it would mean waiting for the device.

        Raises:
            InvalidInputError: the two do not agree.
        """
        if not self._is_exact or not is_on_host(self._gramian) or not is_on_host(weights):
            return
        if not bool(torch.isfinite(self._gramian).all()):
            return  # that is the cause, and whoever reads the Gramian or writes the sum names the tasks
        known = weights.detach().to(torch.float64)
        total = float(known.abs().sum())
        # What must agree is the squared norm of the sum. Its rounding is relative to the terms, not to the sum, which
        # may cancel to nothing; in units of their size neither square leaves the range of numbers.
        size = float(known.abs() @ self._gramian.diagonal().clamp(min=0.0).sqrt())
        # Numbers next to zero are rounded to multiples of the smallest one, of which such gradients may be made up.
        step = torch.finfo(self.dtype).smallest_normal * torch.finfo(self.dtype).eps
        if size <= max(step * math.sqrt(self.width) / _AGREES, _NOTHING) * (1.0 + total):
            return
        unit = known / size
        expected = float(unit @ self._gramian @ unit)
        norm = _norm(found, torch.float32)
        if abs((norm / size) ** 2 - expected) <= _AGREES:
            return
        # Squares of entries below 1e-22 and above 1e19 leave float32's range; to count in float64 takes longer.
        norm = _norm(found, torch.float64)
        if abs((norm / size) ** 2 - expected) <= _AGREES:
            return
        if not math.isfinite(norm):
            raise InvalidInputError(
                "the weighted losses must have a finite gradient, got NaN or infinity with the weights "
                f"{weights.tolist()}, where each task's own is finite. Nothing was updated. Half precision may have "
                "overflowed: multiply the losses by a constant, or keep the Jacobian."
            )
        raise InvalidInputError(
            f"`keep` must be 'jacobian' for this model, got 'gramian' and a Gramian by which the update has the norm "
            f"{size * max(expected, 0.0) ** 0.5:.6g}, where a backward pass gives {norm:.6g}. Look for hooks "
            "on activations (Tensor.register_hook), which cut graphs call twice, and on parameters, where the hook of "
            "a sum is not the sum of the hooks; or keep the Jacobian."
        )

    def _moved(self, weights: Tensor) -> Tensor:
        # Wider than half precision, to which only the losses may round them.
        wide = torch.promote_types(self.dtype, torch.float32)
        return weights.to(device=self.parameters[0].device, dtype=wide, non_blocking=True)

    def rescale(self, factor: Tensor) -> None:
        """Multiply the gradients by a positive number."""
        # The gradients do not exist yet: the Gramian, of second degree in them, is scaled now, their sums when they are
        # made.
        scale = factor.to(self._gramian)
        self._gramian = self._gramian * scale * scale
        backward = self._backward
        self._backward = lambda weights: backward(weights * factor.to(weights))


_AGREES = 1e-2
"""Relative to the terms' size: far above the rounding of half precision, far below what a hook called twice does."""


_NOTHING = 1e-150
"""A norm whose square float64 cannot hold."""


def _norm(gradients: Sequence[Tensor | None], dtype: torch.dtype) -> float:
    """The norm of gradients, with squares summed in float64, or in another dtype where theirs is no wider."""
    norms: list[Tensor] = []
    for gradient in gradients:
        if gradient is None:
            continue
        stored = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
        real = as_real(stored)
        # In half precision, which ends at 65,504, the square of an entry of 256 overflows.
        wide = torch.promote_types(real.dtype, dtype)
        norms.append(torch.linalg.vector_norm(real, dtype=wide).double())
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def weighted_backward(outputs: Outputs, index: Sequence[int], shared: Sequence[Tensor]) -> WeightedBackward:
    """One backward pass of the weighted losses, through a graph that is kept."""

    def backward(weights: Tensor) -> Sequence[Tensor | None]:
        losses = outputs if isinstance(outputs, Tensor) else torch.stack(outputs)
        seed = pick(weights, index).to(losses.dtype)
        # The graph is kept, since a store may be asked again: for the update, and for what a monitor shows.
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
        # Linearity: the trunk is differentiated once, for the weighted sum of the gradients at the features.
        combined = weighted_sum(matrix, pick(weights, index))
        parts = torch.split(combined, [flat_size(z) for z in features])
        seeds = [
            # A complex feature lies in the matrix as pairs of real columns, see flat_size.
            (torch.view_as_complex(part.view(-1, 2)) if z.is_complex() else part).view(z.shape).to(z.dtype)
            for part, z in zip(parts, features, strict=True)
        ]
        return torch.autograd.grad(features, shared, seeds, retain_graph=True, allow_unused=True)

    return gramian_of(matrix), backward
