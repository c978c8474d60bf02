r"""Non-negative quadratic programs by an interior-point method of fixed length."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nonnegative_quadratic", "priced_quadratic", "solve_on"]

STEPS = 30
"""Predictor–corrector steps; each gains about a digit at first and two later on."""


def nonnegative_quadratic(matrix: Tensor, linear: Tensor) -> Tensor:
    r"""The minimiser of :math:`\tfrac12 x^\top Q x + q^\top x` over :math:`x \ge 0`.

    Mehrotra's predictor–corrector method, then one solve on the coordinates that it leaves positive, which is kept
    where it satisfies the conditions better: where complementarity is strict, that is the solution to rounding.

    Args:
        matrix: ``Q`` ``[..., m, m]``, float64, positive definite up to rounding, diagonal near 1.
        linear: ``q`` ``[..., m]``, of about the size of 1.

    Returns:
        ``[..., m]``, non-negative.

    References:
        Mehrotra, *On the implementation of a primal-dual interior point method*, SIAM J. Optim. 1992.
    """
    x = torch.ones_like(linear)
    # Away from the boundary on both sides: a small product at the start lets the first steps hit it and end there.
    slack = (_times(matrix, x) + linear).clamp(min=1.0)
    for _ in range(STEPS):
        gap = _times(matrix, x) + linear - slack
        centre = (x * slack).mean(dim=-1, keepdim=True)
        # cholesky_ex, since cholesky waits for the device to see whether it failed; a failure shows as a step that is
        # not finite.
        root, _ = torch.linalg.cholesky_ex(matrix + torch.diag_embed(slack / x))
        # Predictor: towards complementarity 0. How far it gets tells how far the products are to be lowered, and how
        # large the term of second order is.
        first = _solve(root, -gap - slack)
        other = -slack - slack / x * first
        length = _reach(x, first, slack, other, 1.0)
        ahead = ((x + length * first) * (slack + length * other)).mean(dim=-1, keepdim=True)
        # Corrector, with Mehrotra's cube.
        wanted = centre * (ahead / centre) ** 3 - first * other
        step = _solve(root, -gap - slack + wanted / x)
        other = (wanted - slack * step) / x - slack
        length = _reach(x, step, slack, other, 0.995)
        moved, pushed = x + length * step, slack + length * other
        # The number of steps is fixed, so the last ones start from a solved problem, where 0/0 and negative roundings
        # appear: a step that leaves the positive numbers or is not finite is not taken.
        good = (torch.isfinite(moved) & torch.isfinite(pushed) & (moved > 0.0) & (pushed > 0.0)).all(-1, keepdim=True)
        x, slack = torch.where(good, moved, x), torch.where(good, pushed, slack)
    return _polished(matrix, linear, x, x > slack)


def priced_quadratic(matrix: Tensor, linear: Tensor, prices: Tensor) -> Tensor:
    r"""The minimiser of :math:`\tfrac12 x^\top Q x + q^\top x` over :math:`x \ge 0` with :math:`p^\top x = 1`.

    The same method; coordinates that it drives to zero are set to zero, without a solve on the others.

    Args:
        matrix: ``Q`` ``[..., m, m]``, float64, positive definite up to rounding.
        linear: ``q`` ``[..., m]``, of about the size of 1.
        prices: ``p`` ``[..., m]``, non-negative, the largest 1.

    Returns:
        ``[..., m]``, non-negative.
    """
    x = torch.ones_like(linear)
    # The constraint's multiplier, at first the largest with q − p · price not negative, within the problem's size.
    price = (linear / prices.clamp(min=1e-300)).amin(-1, keepdim=True).clamp(-1.0, 1.0)
    slack = (_times(matrix, x) + linear - price * prices).clamp(min=1.0)
    for _ in range(STEPS):
        gap = _times(matrix, x) + linear - price * prices - slack
        short = 1.0 - (prices * x).sum(-1, keepdim=True)
        centre = (x * slack).mean(dim=-1, keepdim=True)
        root, _ = torch.linalg.cholesky_ex(matrix + torch.diag_embed(slack / x))
        # The constraint is a border of one row: two solves with the same factor do, and the matrix stays positive
        # definite.
        bought = _solve(root, prices.expand_as(x))
        first, _ = _within_budget(root, -gap - slack, prices, bought, short)
        other = -slack - slack / x * first
        length = _reach(x, first, slack, other, 1.0)
        ahead = ((x + length * first) * (slack + length * other)).mean(dim=-1, keepdim=True)
        wanted = centre * (ahead / centre) ** 3 - first * other
        step, rise = _within_budget(root, -gap - slack + wanted / x, prices, bought, short)
        other = (wanted - slack * step) / x - slack
        length = _reach(x, step, slack, other, 0.995)
        moved, pushed = x + length * step, slack + length * other
        # As above: a step from a problem already solved may be 0/0, and is not taken.
        good = (torch.isfinite(moved) & torch.isfinite(pushed) & (moved > 0.0) & (pushed > 0.0)).all(-1, keepdim=True)
        x, slack = torch.where(good, moved, x), torch.where(good, pushed, slack)
        price = torch.where(good, price + length * rise, price)
    return torch.where(x > slack, x, 0.0)


def _within_budget(root: Tensor, right: Tensor, prices: Tensor, bought: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
    """The step that also makes up for what ``pᵀx`` falls short of 1, and the change of the constraint's multiplier."""
    free = _solve(root, right)
    rise = (short - (prices * free).sum(-1, keepdim=True)) / (prices * bought).sum(-1, keepdim=True)
    return free + rise * bought, rise


def _polished(matrix: Tensor, linear: Tensor, x: Tensor, free: Tensor) -> Tensor:
    """The solution on the free coordinates, where it is better than ``x``.

    An interior point stops some digits short of the solution; if the free coordinates are the right ones, one solve
    gives the rest. If they are not, as where a coordinate and its slack are both zero, ``x`` stays.
    """
    exact = solve_on(matrix, -linear, free).clamp(min=0.0)
    better = torch.isfinite(exact).all(-1, keepdim=True) & (
        _violation(matrix, linear, exact) <= _violation(matrix, linear, x)
    )
    return torch.where(better, exact, x)


def _violation(matrix: Tensor, linear: Tensor, x: Tensor) -> Tensor:
    slack = _times(matrix, x) + linear
    along = (x * slack).sum(-1, keepdim=True).abs() / (1.0 + x.sum(-1, keepdim=True))
    return torch.maximum((-slack).amax(-1, keepdim=True).clamp(min=0.0), along)


def solve_on(matrix: Tensor, right: Tensor, free: Tensor) -> Tensor:
    """``x`` with ``(Q x)_i = r_i`` for free coordinates, the others being 0; with one step of refinement."""
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    # The others are decoupled by rows of the identity: a smaller matrix would have a size that the device has to tell
    # first.
    system = torch.where(both, matrix, 0.0) + torch.diag_embed((~free).to(matrix.dtype))
    root, _ = torch.linalg.cholesky_ex(system)
    wanted = torch.where(free, right, 0.0)
    x = _solve(root, wanted)
    return torch.where(free, x + _solve(root, wanted - _times(system, x)), 0.0)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solve(root: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right.unsqueeze(-1), root).squeeze(-1)


def _reach(x: Tensor, step: Tensor, slack: Tensor, other: Tensor, share: float) -> Tensor:
    """The length of a step that keeps both vectors positive, up to 1."""
    lowest = torch.minimum((step / x).amin(-1, keepdim=True), (other / slack).amin(-1, keepdim=True))
    return torch.where(lowest < 0.0, (-share / lowest).clamp(max=1.0), 1.0)
