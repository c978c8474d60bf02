r"""The point at which every task's progress is in a power law with its weight, on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_aggregators.solvers.device.rows import unit_rows
from mtl_aggregators.solvers.fair_point import FIRST_STAGE, SMALLEST, STAGE
from mtl_aggregators.solvers.rows import EPS

__all__ = ["fair_point"]

STEPS = 40
"""Newton steps for the power that is asked for."""
DETERMINED = 1e-4
"""Relative error of a progress, rounding included, up to which the problem without a ridge has a solution."""
STAGE_STEPS = 12
"""Newton steps for each power on the way there."""


def fair_point(gramian: Tensor, alpha: float, *, ridge: float = 1e-3) -> Tensor:
    r"""Positive weights with :math:`(Gw)_i = w_i^{-1/\alpha}`; see ``mtl_aggregators.solvers.fair_point``.

    The problem with a ridge is solved beside it, and taken where the other one has no solution.

    Args:
        gramian: ``[..., m, m]``.
        alpha: positive.
        ridge: positive.

    Returns:
        ``[..., m]``, 0 for zero rows.

    Example:
        >>> fair_point(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1.0)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    rows = unit_rows(gramian)
    power = 1.0 / alpha
    logs = rows.norms.log()
    size = gramian.shape[-1]
    eye = torch.eye(size, dtype=torch.float64, device=gramian.device)
    if size == 2 and power == 1.0:
        cosine = rows.cosines[..., 0, 1].unsqueeze(-1)
        total = 1.0 + cosine
        log_y = (-0.5 * torch.where(total > 16.0 * EPS, total, total + ridge).log()).expand_as(logs)
    else:
        # Both problems as one batch: whether the first has a solution is known at the end, and asking before would wait
        # for the device.
        pair = torch.stack([rows.cosines, rows.cosines + ridge * eye])
        both = logs.expand_as(pair[..., 0])
        found, error = _solve(pair, both, power)
        log_y = torch.where((error[0] <= DETERMINED).unsqueeze(-1), found[0], found[1])
    weights = torch.exp(log_y - logs - (2.0 / (1.0 + power)) * rows.scale.log())
    return torch.where(rows.active, weights, 0.0)


def _solve(cosines: Tensor, logs: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """``log y`` with ``C y = a y^-p``, and what rounding leaves undetermined of it."""
    stage = max(power, 1.0 / FIRST_STAGE)
    log_y = (stage - 1.0) / (1.0 + stage) * logs
    while True:
        last = stage == power
        log_y, error = _newton(cosines, (stage - 1.0) * logs, log_y, stage, STEPS if last else STAGE_STEPS)
        if last:
            return log_y, error
        # The same progress of every task under the new power: the weights that the next one gives to it.
        progress = (cosines @ log_y.clamp(min=SMALLEST).exp().unsqueeze(-1)).squeeze(-1).clamp(min=1e-300)
        stage = max(power, stage / STAGE)
        log_y = ((stage - 1.0) * logs - progress.log()) / stage


def _newton(cosines: Tensor, log_a: Tensor, log_y: Tensor, power: float, steps: int) -> tuple[Tensor, Tensor]:
    magnitude = cosines.abs()
    error = torch.full_like(log_y[..., 0], torch.inf)
    best = log_y
    # A fixed number, since an early end would have to be asked for. The best point seen is kept, as rounding makes the
    # last steps wander.
    for _ in range(steps):
        known = log_y.clamp(min=SMALLEST)
        y = known.exp()
        target = (log_a - power * log_y).exp()
        missing = target - (cosines @ y.unsqueeze(-1)).squeeze(-1)
        residual = (missing / target).abs().amax(-1)
        # Where nothing but rounding is left of the difference, the point is as good as it gets if that is little.
        rounding = (magnitude @ y.unsqueeze(-1)).squeeze(-1) * (EPS * (1.0 + known.abs().amax(-1, keepdim=True)))
        residual = torch.maximum(residual, (rounding / target).amax(-1))
        better = residual < error
        error = torch.where(better, residual, error)
        best = torch.where(better.unsqueeze(-1), log_y, best)
        root, _ = torch.linalg.cholesky_ex(cosines + torch.diag_embed(power * target / y))
        change = torch.cholesky_solve(missing.unsqueeze(-1), root).squeeze(-1) / y
        # A full Newton step may make a weight negative, whose power does not exist.
        lowest = change.amin(-1, keepdim=True)
        change = torch.where(lowest < -0.9, change * (-0.9 / lowest), change)
        moved = log_y + torch.log1p(change)
        log_y = torch.where(torch.isfinite(moved).all(-1, keepdim=True), moved, log_y)
    return best, error
