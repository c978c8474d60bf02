r"""Projection onto the cone of directions that no task objects to, on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_aggregators.solvers.device.quadratic import nonnegative_quadratic
from mtl_aggregators.solvers.device.rows import Rows, lifted, unit_rows
from mtl_aggregators.solvers.rows import EPS

__all__ = ["project", "project_rows"]


def project(gramian: Tensor, coefficients: Tensor, *, ridge: float = 0.0) -> Tensor:
    r"""Projection of :math:`J^\top u` onto the dual cone; see ``mtl_aggregators.solvers.project``.

    Args:
        gramian: ``[..., m, m]``.
        coefficients: ``u`` ``[..., m]``.
        ridge: added to the diagonal of the cosines.

    Returns:
        ``v`` ``[..., m]``.

    Example:
        >>> project(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.tensor([1.0, 0.0]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    rows = unit_rows(gramian)
    wanted = coefficients.to(rows.norms)
    start = wanted * rows.norms * rows.active
    length = start.abs().sum(-1, keepdim=True)
    length = torch.where(length > 0.0, length, 1.0)
    cosines = _with_ridge(rows, ridge)
    if gramian.shape[-1] == 2:
        added = _two(cosines, start / length)
    else:
        added = _added(cosines, (start / length).unsqueeze(-2)).squeeze(-2)
    return wanted + torch.where(rows.active, added * length / rows.norms, 0.0)


def project_rows(gramian: Tensor, *, ridge: float = 0.0) -> Tensor:
    r"""Projection of every gradient onto the dual cone; see ``mtl_aggregators.solvers.project_rows``.

    Args:
        gramian: ``[..., m, m]``.
        ridge: added to the diagonal of the cosines.

    Returns:
        ``V`` ``[..., m, m]``, such that row ``i`` of ``V J`` is the projection of ``g_i``.

    Example:
        >>> project_rows(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([[1.0000, 0.5000],
                [1.0000, 1.0000]], dtype=torch.float64)
    """
    rows = unit_rows(gramian)
    size = gramian.shape[-1]
    eye = torch.eye(size, dtype=torch.float64, device=gramian.device)
    if size == 2:
        added = (-rows.cosines).clamp(min=0.0) / (1.0 + ridge) * (1.0 - eye)
    else:
        added = _added(_with_ridge(rows, ridge), eye.expand_as(rows.cosines))
    both = rows.active.unsqueeze(-1) & rows.active.unsqueeze(-2)
    return eye + torch.where(both, added * rows.norms.unsqueeze(-1) / rows.norms.unsqueeze(-2), 0.0)


def _with_ridge(rows: Rows, ridge: float) -> Tensor:
    if not ridge:
        return rows.cosines
    return rows.cosines + ridge * torch.eye(rows.cosines.shape[-1], dtype=torch.float64, device=rows.cosines.device)


def _two(cosines: Tensor, start: Tensor) -> Tensor:
    """Closed form for two tasks: what neither, one or both of them have to be given."""
    size = cosines[..., 0, 0]
    cosine = cosines[..., 0, 1]
    progress = (cosines @ start.unsqueeze(-1)).squeeze(-1)
    first, second = (-progress[..., 0]).clamp(min=0.0) / size, (-progress[..., 1]).clamp(min=0.0) / size
    zero = torch.zeros_like(first)
    # A task that is served up to some roundings is served: a progress of -1e-17 must not decide which case it is.
    # Is it enough to add the first gradient, or the second? If neither, both are tight, and what makes both products
    # zero is minus the start.
    alone = progress[..., 1] + cosine * first >= -4.0 * EPS
    other = progress[..., 0] + cosine * second >= -4.0 * EPS
    both = torch.where(other.unsqueeze(-1), torch.stack([zero, second], dim=-1), (-start).clamp(min=0.0))
    return torch.where(alone.unsqueeze(-1), torch.stack([first, zero], dim=-1), both)


def _added(cosines: Tensor, starts: Tensor) -> Tensor:
    """For each of several starts ``[..., n, m]``, the least that has to be added, ``[..., n, m]``."""
    matrix = lifted(cosines)
    return nonnegative_quadratic(matrix.unsqueeze(-3), starts @ matrix)
