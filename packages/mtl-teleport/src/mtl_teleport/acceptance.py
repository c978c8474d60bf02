"""Whether a displacement may stay: shortened until the losses hold still, or given up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import Problem
from mtl_core.extension import evaluate_without_graph, mean_over_tasks_present_, together
from mtl_teleport.adapters.protocol import displaced
from mtl_teleport.objective import relative_drift

__all__ = ["Verdict", "judge", "probe_losses"]


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


def probe_losses(
    problem: Problem,
    batches: Sequence[Any],
    parameters: Mapping[str, Tensor] | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Tensor, ...]:
    """The losses of every batch without gradients, ``[m]`` each, NaN where a task is absent; means over a group."""
    found = []
    for batch in batches:
        with together(group), around():
            losses = evaluate_without_graph(problem, batch, parameters=parameters)
        full = losses.full(math.nan)
        found.append(full if group is None else mean_over_tasks_present_(full, losses.index, group)[0])
    return tuple(found)


def judge(
    problem: Problem,
    batches: Sequence[Any],
    own: tuple[Tensor, ...],
    delta: Mapping[str, Tensor],
    *,
    max_drift: float | None,
    backtracks: int,
    group: dist.ProcessGroup | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Verdict:
    """Find the part of a displacement under which the losses hold still; the parameters are not touched.

    Args:
        problem: the problem.
        batches: the probe batches.
        own: their losses before.
        delta: the displacement by parameter name.
        max_drift: largest mean relative drift; ``None`` asks only for finite losses.
        backtracks: how often it may be shortened, each time to between a tenth and seven tenths.
        group: a process group over which losses are means, so that every rank judges alike.
        around: what each evaluation runs in.
    """
    if not all(bool(torch.isfinite(step).all()) for step in delta.values()):
        return Verdict(None, own, 0.0, 0.0, "the displacement is not finite", 0)
    if not any(bool(step.any()) for step in delta.values()):
        return Verdict(None, own, 0.0, 0.0, "the displacement is zero", 0)
    shared = problem.named_shared
    scale, drift, forwards, losses = 1.0, math.inf, 0, own
    for _ in range(backtracks + 1):
        values = displaced(shared, delta, scale=scale)
        losses = probe_losses(problem, batches, values, group=group, around=around)
        forwards += len(batches)
        drift = float(torch.stack([relative_drift(new, old) for new, old in zip(losses, own, strict=True)]).mean())
        if math.isfinite(drift) and (max_drift is None or drift <= max_drift):
            reason = "accepted" if scale == 1.0 else "accepted after backtracking"
            return Verdict(values, losses, drift, scale, reason, forwards)
        wanted = 0.9 * max_drift / drift if max_drift is not None and math.isfinite(drift) else 0.0
        scale *= min(0.7, max(0.1, wanted))
    if math.isfinite(drift):
        return Verdict(None, losses, drift, 0.0, f"drift {drift:.3g} exceeds max_drift {max_drift:g}", forwards)
    return Verdict(None, losses, drift, 0.0, "a loss is not finite", forwards)
