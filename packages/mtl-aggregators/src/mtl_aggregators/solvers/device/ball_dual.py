r"""The dual problem of CAGrad, on its device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtl_aggregators.solvers.device.min_norm import hull, inverse_norms, min_norm
from mtl_aggregators.solvers.device.quadratic import nonnegative_quadratic, priced_quadratic, solve_on
from mtl_aggregators.solvers.device.rows import lifted, unit_rows
from mtl_aggregators.solvers.rows import EPS, RESOLUTION

__all__ = ["Ball", "ball_dual", "worst_off"]

GRID = 16
"""Shifts that are tried at once."""
ROUNDS = 5
"""How often the bracket is narrowed to a fifteenth."""
SPAN = 50.0
"""Logarithm of the ratio between the bounds of the shift at the start."""


class Ball(NamedTuple):
    """Weights ``[..., m]`` in the simplex and coefficients ``[..., m]`` of the step, as ``BallSolution`` has them."""

    value: Tensor
    step: Tensor


def ball_dual(gramian: Tensor, *, linear: float | Tensor, norm: float | Tensor) -> Ball:
    r"""Minimiser over the simplex of :math:`a\langle g_w, g_0\rangle + b\|g_0\|\|g_w\|`.

    See ``mtl_aggregators.solvers.ball_dual``. Here the scalar root is bracketed by a grid of shifts, whose min-norm
    points are found all at once; the tasks with positive weight at the last of them give the step in closed form. The
    projection that decides about the kink, where zero lies in the hull, is computed in any case.

    Args:
        gramian: ``[..., m, m]``.
        linear: ``a``, positive; a number or one per Gramian, ``[...]``.
        norm: ``b``, positive, likewise.

    Example:
        >>> [part.numpy().round(9).tolist() for part in ball_dual(torch.eye(2), linear=1.0, norm=0.5)]
        [[0.5, 0.5], [0.5, 0.5]]
    """
    rows = unit_rows(gramian)
    size = gramian.shape[-1]
    quotient = linear / norm
    ratio = quotient.unsqueeze(-1) if isinstance(quotient, Tensor) else quotient
    active = rows.active
    norms = torch.where(active, rows.norms, 0.0)
    pull = (rows.cosines @ norms.unsqueeze(-1)).squeeze(-1)
    # The squared length of the sum of the gradients, and the terms that it may cancel from.
    squared = (norms * pull).sum(-1, keepdim=True)
    terms = (norms * (rows.cosines.abs() @ norms.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
    centred = squared <= 4.0 * EPS * terms
    length = torch.where(centred, 1.0, squared).sqrt()
    cosines = lifted(rows.cosines)
    inverse = inverse_norms(rows)
    mean = pull / length
    found = _search(cosines, inverse, mean, ratio, active)
    steps, errors = _better(cosines, inverse, mean, ratio, found, active)
    # By gather: indexing by a tensor would read it and wait for the device.
    best = errors.argmin(0, keepdim=True)
    step = torch.gather(steps, 0, best.expand_as(steps[:1])).squeeze(0)
    shifted = hull(rows, inverse)
    reach = _length(cosines, shifted)
    cone = nonnegative_quadratic(cosines, mean) * ratio * active
    root = (4.0 * RESOLUTION * size) ** 0.5
    # Both sides are computed and one is chosen at the end: an `if` would wait for the device.
    kink = (reach <= root * shifted.sum(-1, keepdim=True)) & (_length(cosines, cone) <= 1.0)
    step = torch.where(kink, cone, step)
    weights = torch.where(kink, shifted, step) * inverse
    total = weights.sum(-1, keepdim=True)
    count = active.sum(-1, keepdim=True)
    # Without a mean gradient there is no direction to weigh by; as on the host.
    uniform = torch.where(count > 0, active / count.clamp(min=1), 1.0 / size)
    usable = ~centred & (total > 0.0)
    weights = torch.where(usable, weights / torch.where(usable, total, 1.0), uniform)
    found = torch.where(active & ~centred, step * (length / size) / rows.norms, 0.0)
    return Ball(weights, found)


def worst_off(gramian: Tensor) -> Tensor:
    r"""The limit of ``ball_dual``'s weights as ``norm`` goes to 0: on the tasks that the mean gradient serves least.

    Args:
        gramian: ``[..., m, m]``.

    Returns:
        ``[..., m]`` in the simplex: among those tasks, the weights of the min-norm point.

    Example:
        >>> worst_off(torch.diag(torch.tensor([4.0, 1.0, 1.0]))).numpy().round(9).tolist()
        [0.0, 0.5, 0.5]
    """
    rows = unit_rows(gramian)
    progress = gramian.to(torch.float64).sum(-1)
    size = torch.where(rows.active, progress.abs(), 0.0).amax(-1, keepdim=True)
    least = torch.where(rows.active, progress, torch.inf).amin(-1, keepdim=True)
    face = rows.active & (progress <= least + 16.0 * EPS * size)
    return min_norm(torch.where(face.unsqueeze(-1) & face.unsqueeze(-2), gramian, 0.0))


def _length(cosines: Tensor, coefficients: Tensor) -> Tensor:
    squared = (coefficients * (cosines @ coefficients.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
    return squared.clamp(min=0.0).sqrt()


def _shifted(cosines: Tensor, inverse: Tensor, mean: Tensor, shift: Tensor) -> Tensor:
    """The min-norm point of the gradients shifted by ``shift`` times the mean's direction, up to scale.

    Squaring the shifted gradients would drown their differences where the shift is large; it is the same to leave the
    shift in the linear term and keep the weights' sum at 1.
    """
    share = 1.0 / (1.0 + shift)
    return priced_quadratic(share.unsqueeze(-1) * cosines, share * shift * mean, inverse.expand_as(share * inverse))


def _search(cosines: Tensor, inverse: Tensor, mean: Tensor, ratio: float | Tensor, active: Tensor) -> Tensor:
    """Candidates ``[GRID, ..., m]`` for the step, from a bracket of the shift narrowed ``ROUNDS`` times."""
    least = torch.where(active, inverse, torch.inf).amin(-1, keepdim=True)
    # The shift sought is ratio · ‖Σ z_i u_i‖ / Σ z_i b_i, so at most ratio over the least inverse norm b. It is
    # bracketed by its logarithm, since gradient norms, and with them the shift, may lie decades apart.
    high = torch.where(torch.isfinite(least), ratio / least, 1.0).log() + 1e-6
    low = high - SPAN
    # One dimension more in front: all shifts of the grid are one batched problem, since launches are what an iteration
    # costs on a device.
    places = torch.linspace(0.0, 1.0, GRID, dtype=torch.float64, device=cosines.device)
    places = places.reshape(GRID, *([1] * inverse.ndim))
    found = inverse.expand(GRID, *inverse.shape)
    for _ in range(ROUNDS):
        guess = low + (high - low) * places
        shift = guess.exp()
        found = _shifted(cosines, inverse, mean, shift) * active
        share = (found * inverse).sum(-1, keepdim=True)
        reached = ratio * _length(cosines, found) / torch.where(share > 0.0, share, 1.0)
        # The shift that is sought lies above those that fall short of what they reach.
        below = (reached >= shift).to(torch.float64).sum(0)
        width = (high - low) / (GRID - 1)
        low, high = low + (below - 1.0).clamp(min=0.0) * width, low + below.clamp(min=1.0, max=GRID - 1.0) * width
    return found


def _better(
    cosines: Tensor, inverse: Tensor, mean: Tensor, ratio: float | Tensor, found: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit steps as they were found or solved for on their support, whichever is nearer; and how far they are off."""
    length = _length(cosines, found)
    plain = found / torch.where(length > 0.0, length, 1.0)
    # An interior point leaves small positive numbers where the solution is zero.
    free = active & (found > 1e-9 * found.amax(-1, keepdim=True))
    both = torch.stack([inverse, mean]).unsqueeze(1)
    sides = free.expand(2, *free.shape)
    # With C y + κ h = μ b on the support, y = μ C⁻¹b − κ C⁻¹h; the length of 1 is a quadratic equation for μ.
    one, other = solve_on(cosines.expand(*sides.shape, cosines.shape[-1]), both.expand_as(sides), sides)
    square = (inverse * one).sum(-1, keepdim=True)
    cross = ratio * (inverse * other).sum(-1, keepdim=True)
    rest = ratio**2 * (mean * other).sum(-1, keepdim=True) - 1.0
    level = (cross + (cross.square() - square * rest).clamp(min=0.0).sqrt()) / square
    exact = (level * one - ratio * other).clamp(min=0.0)
    off = [_unequal(cosines, inverse, mean, ratio, step, active) for step in (exact, plain)]
    better = torch.isfinite(exact).all(-1, keepdim=True) & (off[0] <= off[1])
    return torch.where(better, exact, plain), torch.where(better, off[0], off[1])


def _unequal(
    cosines: Tensor, inverse: Tensor, toward: Tensor, ratio: float | Tensor, step: Tensor, active: Tensor
) -> Tensor:
    """How far a unit step is from optimal: the least slack, complementarity and length."""
    slack = (cosines @ step.unsqueeze(-1)).squeeze(-1) + ratio * toward
    share = (step * inverse).sum(-1, keepdim=True)
    slack = slack - inverse * ((step * slack).sum(-1, keepdim=True) / torch.where(share > 0.0, share, 1.0))
    least = torch.where(active, slack, torch.inf).amin(-1, keepdim=True)
    pairs = (step * slack).abs().amax(-1, keepdim=True) / (1.0 + step.sum(-1, keepdim=True))
    off = (_length(cosines, step) - 1.0).abs()
    return torch.maximum(torch.maximum(-least, pairs), off)
