"""Task gradients of which only the Gramian is kept; a weighted sum of them costs one more backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from mtl_core.collecting.backward import is_on_host
from mtl_core.collecting.flat import Row, as_real, flat_size, flatten_into, pick
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.graph import Outputs
from mtl_core.collecting.overflow import refuse_overflow
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
        is_exact: bool = False,
    ) -> None:
        super().__init__(parameters, len(gramian), touched)
        self._gramian = gramian
        self._backward = backward
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
        found = self._backward(self._moved(weights))
        self._check(found, weights)
        flatten_into(vector, found, self.parameters)
        return vector

    def write_combination(self, weights: Tensor, gramian: Tensor | None, factor: Tensor | None) -> None:
        """Write the gradients of the backward pass without joining them in a vector; sparse ones stay sparse."""
        moved = self._moved(weights)
        # The factor goes into the m weights: multiplying the d gradients would be one more pass over them.
        found = self._backward(moved if factor is None else moved * factor.to(moved))
        self._check(found, weights if factor is None else weights * factor.to(weights))
        # All at once, for two parameters may have been given one tensor.
        for k, (parameter, gradient) in enumerate(zip(self.parameters, in_own_memory(found), strict=True)):
            if gradient is None or not self.touched[k]:
                parameter.grad = None
            else:
                put(parameter, gradient, accumulate=False)

    def _check(self, found: Sequence[Tensor | None], weights: Tensor) -> None:
        """Hold the Gramian to the one combination that an ordinary backward pass gives: its square is wᵀGw.

        The sweep cuts the graph, and autograd calls a hook on a tensor both where the tensor is captured at a cut and
        where the next part starts from it. Such hooks are not to be seen in the graph; that they had doubled a gradient
        shows here, before anything is written. On the CPU only, as elsewhere it would mean waiting for the device.

        Raises:
            InvalidInputError: the two do not agree.
        """
        if not is_on_host(self._gramian) or not is_on_host(weights):
            return
        if not self._is_exact:
            # The Gramian is that at the features, and says nothing of the size of what is written.
            real = [None if g is None or g.layout != torch.strided else as_real(g) for g in found]
            refuse_overflow(weights, self.parameters, real, "`method` must give an update that the parameters can hold")
            return
        # What must agree is the squared norm of the sum. Its rounding is relative to the terms, not to the sum, which
        # may cancel to nothing.
        known = weights.detach().to(torch.float64)
        size = float(known.abs() @ self._gramian.diagonal().clamp(min=0.0).sqrt())
        norms = [_norm(g) for g in found if g is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        # In units of the terms' size, in which neither square leaves the range of numbers.
        unit = known / size if size else known
        expected = float(unit @ self._gramian @ unit)
        if not abs((norm / size if size else norm) ** 2 - expected) <= _AGREES:
            raise InvalidInputError(
                f"`keep` must be 'jacobian' for this model, got 'gramian' and a Gramian by which the update has the "
                f"norm {size * max(expected, 0.0) ** 0.5:.6g}, where a backward pass gives {norm:.6g}. Look for hooks "
                "on activations (Tensor.register_hook), which cut graphs call twice, or keep the Jacobian."
            )

    def _moved(self, weights: Tensor) -> Tensor:
        return weights.to(device=self.parameters[0].device, dtype=self.dtype, non_blocking=True)

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


def _norm(gradient: Tensor) -> Tensor:
    """The norm of a gradient, float64."""
    stored = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
    real = as_real(stored)
    # In half precision, which ends at 65,504, the square of an entry of 256 overflows.
    wide = torch.float64 if real.dtype == torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(real, dtype=wide)
    if wide == torch.float32 and not _SQUARES_FIT[0] < float(norm) < _SQUARES_FIT[1]:
        # Squares of such entries leave float32's range; to count in float64 from the beginning would take longer.
        norm = torch.linalg.vector_norm(real, dtype=torch.float64)
    return norm.double()


_SQUARES_FIT = (1e-15, 1e18)


def weighted_backward(outputs: Outputs, index: Sequence[int], shared: Sequence[Tensor]) -> WeightedBackward:
    """One backward pass of the weighted losses, through a graph that is kept."""

    def backward(weights: Tensor) -> Sequence[Tensor | None]:
        losses = outputs if isinstance(outputs, Tensor) else torch.stack(outputs)
        seed, scale = _in_range_of(losses.dtype, pick(weights, index))
        # The graph is kept, since a store may be asked again: for the update, and for what a monitor shows.
        found = torch.autograd.grad([losses], shared, [seed], retain_graph=True, allow_unused=True)
        return found if scale is None else [None if g is None else g * scale.to(g.dtype.to_real()) for g in found]

    return backward


def _in_range_of(dtype: torch.dtype, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights as the seed of a backward pass, and the power of two that its result is to be multiplied by.

    Seeds have the losses' dtype, in which float16 ends at 65,504. The largest weight is brought to between 1/2 and 1.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return weights.to(dtype), None
    wide = weights.to(torch.float32)
    _, exponent = torch.frexp(wide.abs().amax())
    scale = torch.ldexp(torch.ones_like(wide[0]), exponent)
    return (wide / scale).to(dtype), scale


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
        combined = pick(weights, index).to(matrix.dtype) @ matrix
        parts = torch.split(combined, [flat_size(z) for z in features])
        seeds = [
            # A complex feature lies in the matrix as pairs of real columns, see flat_size.
            (torch.view_as_complex(part.view(-1, 2)) if z.is_complex() else part).view(z.shape).to(z.dtype)
            for part, z in zip(parts, features, strict=True)
        ]
        return torch.autograd.grad(features, shared, seeds, retain_graph=True, allow_unused=True)

    return gramian_of(matrix), backward
