r"""The point of least norm in the convex hull of the gradients, on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_aggregators.solvers.device.quadratic import nonnegative_quadratic
from mtl_aggregators.solvers.device.rows import Rows, lifted, unit_rows

__all__ = ["min_norm"]


def min_norm(gramian: Tensor) -> Tensor:
    r"""Weights of the min-norm point, :math:`\min_{w\in\Delta} w^\top G w`; see ``mtl_aggregators.solvers.min_norm``.

    Args:
        gramian: ``[..., m, m]``.

    Returns:
        ``[..., m]`` in the simplex, 0 for zero rows (uniform if all are zero).

    Example:
        >>> min_norm(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        tensor([0.2000, 0.8000], dtype=torch.float64)
    """
    rows = unit_rows(gramian)
    if gramian.shape[-1] == 2:
        weights = _two(rows)
    else:
        inverse = inverse_norms(rows)
        weights = hull(rows, inverse) * inverse
    total = weights.sum(-1, keepdim=True)
    uniform = 1.0 / gramian.shape[-1]
    return torch.where(total > 0.0, weights / torch.where(total > 0.0, total, 1.0), uniform + 0.0 * total)


def inverse_norms(rows: Rows) -> Tensor:
    """``[..., m]``: inverse norms, the largest 1; 0 for a zero row."""
    smallest = torch.where(rows.active, rows.norms, torch.inf).amin(-1, keepdim=True)
    return torch.where(rows.active, smallest / rows.norms, 0.0)


def hull(rows: Rows, inverse: Tensor) -> Tensor:
    """The min-norm point up to scale, in unit rows ``[..., m]``."""
    # (Σ z_i/‖g_i‖ − 1)² beside ‖Rz‖² in place of the constraint; up to scale the minimiser is the same, and without it
    # z = 0 would be the solution.
    system = lifted(rows.cosines) + inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    return nonnegative_quadratic(system, -inverse) * rows.active


def _two(rows: Rows) -> Tensor:
    """Closed form for two tasks, up to scale."""
    first, second = rows.norms[..., 0], rows.norms[..., 1]
    cosine = rows.cosines[..., 0, 1]
    distance = (first - second).square() + 2.0 * first * second * (1.0 - cosine)
    share = second * (second - first * cosine) / torch.where(distance > 0.0, distance, 1.0)
    share = torch.where(distance > 0.0, share, 0.5).clamp(0.0, 1.0)
    # A zero row takes no weight: as the shorter one it would otherwise take all.
    share = torch.where(rows.active[..., 1], share, 1.0)
    share = torch.where(rows.active[..., 0], share, 0.0)
    other = torch.where(rows.active[..., 1], 1.0 - share, 0.0)
    return torch.stack([share, other], dim=-1)
