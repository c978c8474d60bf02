r"""Conflict metrics that need the min-norm point :math:`g_m = \arg\min_{w\in\Delta}\|g_w\|`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_aggregators.solvers import min_norm
from mtl_aggregators.solvers.rounding import as_known
from mtl_aggregators.solvers.rows import RESOLUTION
from mtl_aggregators.solvers.solution import Vector
from mtl_core import TaskGradients
from mtl_core.extension import read_gramian

__all__ = ["plumbline", "stationarity_gap"]


def plumbline(g: TaskGradients | Tensor | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Cosine between the mean gradient and the min-norm point, :math:`\kappa = \cos(g_0, g_m) \in [0, 1]`.

    Low values mean imbalance: the mean points away from what serves all tasks. Zero gradients are left out.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        float64 scalar; 0 where either of the two vectors is zero, as at a Pareto-stationary point.

    Raises:
        InvalidInputError: neither or both arguments are given.
        InvalidJacobianError: a matrix has the wrong rank, shape or dtype, or is not finite.

    References:
        Zhou et al., *Injecting Imbalance Sensitivity for Multi-Task Learning*, IJCAI 2025.

    Example:
        >>> import torch
        >>> round(float(plumbline(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))), 6)
        0.6
    """
    source = read_gramian(g, gramian)
    return source.new_tensor(cosine_to_closest(_on_host(source, gramian)))


def cosine_to_closest(gramian: Vector) -> float:
    """``plumbline`` of a Gramian ``[m, m]`` on the host, float64 and finite."""
    scale = float(gramian.diagonal().max())
    if scale <= 0.0:
        return 0.0
    # In units of the longest gradient: sums of squares neither overflow nor underflow.
    matrix = gramian / scale
    weights = min_norm(matrix).value
    image = matrix @ weights
    squared = float(weights @ image)
    total = float(matrix.sum())
    rounding = 4.0 * RESOLUTION * len(matrix)
    # ‖g_m‖² against the terms that it is a sum of, and the same for the mean.
    if squared <= rounding * float(weights**2 @ matrix.diagonal()) or total <= rounding * float(matrix.trace()):
        return 0.0
    cosine = float(image.sum()) / math.sqrt(squared) / math.sqrt(total)
    return min(1.0, max(0.0, cosine))


def stationarity_gap(g: TaskGradients | Tensor | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Distance from Pareto stationarity, :math:`\min_{w \in \Delta} \|g_w\|`.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        float64 scalar; 0 if some gradient is zero, since that task alone is then stationary.

    Raises:
        InvalidInputError: neither or both arguments are given.
        InvalidJacobianError: a matrix has the wrong rank, shape or dtype, or is not finite.

    Example:
        >>> import torch
        >>> round(float(stationarity_gap(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))), 6)
        2.4
    """
    source = read_gramian(g, gramian)
    matrix = _on_host(source, gramian)
    scale = max(float(matrix.diagonal().max()), 0.0)
    if scale == 0.0 or bool((matrix.diagonal() <= 0.0).any()):
        return source.new_zeros(())
    matrix = matrix / scale
    weights = min_norm(matrix).value
    return source.new_tensor(math.sqrt(max(0.0, float(weights @ matrix @ weights))) * math.sqrt(scale))


def _on_host(source: Tensor, given: Tensor | None) -> Vector:
    """A Gramian ``[m, m]`` as a float64 array; one that was given in a narrow dtype, to that dtype's rounding."""
    array: Vector = source.detach().cpu().resolve_neg().numpy()
    if given is None or given.dtype == torch.float64:
        return array
    return as_known(array, given.dtype)
