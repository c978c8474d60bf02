"""Whether a displacement may stay: shortened until the losses hold still, or given up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_teleport.adapters.protocol import displaced
from mtl_teleport.drift import relative_drift
from mtl_teleport.evaluation import probe_losses
from mtl_teleport.search_context import Search

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """What became of a displacement.

    Attributes:
        values: the parameters' new values by name, or ``None`` if it was given up.
        losses: per probe batch, ``[m]``, at the point that was judged last.
        drift: mean relative drift of the losses there.
        scale: the part of the displacement that was taken, 0 if none.
        reason: in words.
        forwards: evaluations of the losses that it took.
    """

    values: dict[str, Tensor] | None
    losses: tuple[Tensor, ...]
    drift: float
    scale: float
    reason: str
    forwards: int


def judge(search: Search, delta: Mapping[str, Tensor], *, max_drift: float | None, backtracks: int) -> Verdict:
    """Find the part of a displacement under which the losses hold still; the parameters are not touched.

    Args:
        search: the problem, its probe batches and their losses before.
        delta: the displacement by parameter name.
        max_drift: largest mean relative drift; ``None`` asks only for finite losses.
        backtracks: how often it may be shortened, each time to between a tenth and seven tenths.
    """
    own = search.losses
    if not all(bool(torch.isfinite(step).all()) for step in delta.values()):
        return Verdict(None, own, 0.0, 0.0, "the displacement is not finite", 0)
    if not any(bool(step.any()) for step in delta.values()):
        return Verdict(None, own, 0.0, 0.0, "the displacement is zero", 0)
    shared = search.problem.named_shared
    scale, drift, forwards, losses = 1.0, math.inf, 0, own
    for _ in range(backtracks + 1):
        values = displaced(shared, delta, scale=scale)
        # Not a move: half precision rounds away what is far below its parameters.
        if all(torch.equal(value, shared[name]) for name, value in values.items()):
            return Verdict(None, own, 0.0, 0.0, "the displacement is below the rounding of the parameters", forwards)
        losses = probe_losses(search.problem, search.batches, values, conditions=search.conditions)
        forwards += len(search.batches)
        drift = float(torch.stack([relative_drift(new, old) for new, old in zip(losses, own, strict=True)]).mean())
        if math.isfinite(drift) and (max_drift is None or drift <= max_drift):
            reason = "accepted" if scale == 1.0 else "accepted after backtracking"
            return Verdict(values, losses, drift, scale, reason, forwards)
        # Where drift grows in proportion to the length, or faster, this part of the displacement is within the limit; a
        # tenth less, for where it does not. A loss that is not finite says nothing of how far is too far: a tenth.
        wanted = 0.9 * max_drift / drift if max_drift is not None and math.isfinite(drift) else 0.0
        # Within bounds: not so little shorter that the tries run out, nor so short at once that nothing is left.
        scale *= min(0.7, max(0.1, wanted))
    if math.isfinite(drift):
        return Verdict(None, losses, drift, 0.0, f"drift {drift:.3g} exceeds max_drift {max_drift:g}", forwards)
    return Verdict(None, losses, drift, 0.0, "a loss is not finite", forwards)
