"""One move: what a search proposes, and how its result is written and told."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl_core import TaskGradients
from mtl_teleport.acceptance import Verdict
from mtl_teleport.climb import PathPoint, SearchEnd
from mtl_teleport.report import TeleportReport, conflict_measures
from mtl_teleport.search_context import Search

__all__ = ["Occasion", "Proposal", "Seen", "described", "rolled_back", "with_after"]


@dataclass(frozen=True)
class Proposal:
    """A displacement by parameter name, the work that it took to find, and the points that the search looked at.

    Where the search itself has given up, the displacement is empty and ``reason`` says why.
    """

    delta: dict[str, Tensor]
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    passes: int = 0
    path: tuple[PathPoint, ...] = ()
    reason: str = ""
    ended: SearchEnd | None = None


@dataclass(frozen=True)
class Seen:
    """What a teleport remembers of the gradients before it: Gramian, the update due, its weights, cosines and norms."""

    gramian: Tensor
    update: dict[str, Tensor]
    weights: Tensor | None
    measures: tuple[tuple[float, ...], tuple[float, ...], float]

    @classmethod
    def of(cls, gradients: TaskGradients, update: dict[str, Tensor], weights: Tensor | None) -> Seen:
        """Of the gradients, the update that was due and the weights behind it, where there are any."""
        return cls(gradients.host_gramian, update, weights, conflict_measures(gradients))


@dataclass(frozen=True)
class Occasion:
    """When and where a move is made.

    Attributes:
        step: number of the step.
        epoch: number of the epoch, if there is one.
        trigger: name of the condition.
        size: norm of the shared parameters before.
        began: ``time.perf_counter()`` then.
    """

    step: int
    epoch: int | None
    trigger: str
    size: float
    began: float


def described(
    occasion: Occasion,
    search: Search,
    seen: Seen,
    proposal: Proposal,
    verdict: Verdict,
    moved: tuple[float, float] | None,
    passes: int,
) -> TeleportReport:
    """The report on a move, which lacks what is measured after it.

    Args:
        occasion: when and where.
        search: what the search used.
        seen: the gradients before.
        proposal: what was proposed.
        verdict: what became of that.
        moved: the cosine with the update and the length, if the move was written.
        passes: what it took so far.
    """
    cosines, norms, mean_norm = seen.measures
    sigma, length = (None, 0.0) if moved is None else moved
    size = occasion.size
    return TeleportReport(
        step=occasion.step,
        epoch=occasion.epoch,
        trigger=occasion.trigger,
        tasks=search.problem.tasks,
        accepted=moved is not None,
        reason=proposal.reason or verdict.reason,
        losses_before=_mean_losses(search.losses),
        losses_after=_mean_losses(verdict.losses),
        drift=verdict.drift,
        cosines_before=cosines,
        cosines_after=None,
        norms_before=norms,
        norms_after=None,
        mean_norm_before=mean_norm,
        mean_norm_after=None,
        sigma=sigma,
        length=length,
        relative_length=length / size if size > 0 else math.inf if length > 0 else 0.0,
        scale=verdict.scale,
        kept=None,
        adapter_steps=proposal.steps,
        search_losses=tuple(point.losses for point in proposal.path),
        search_growth=tuple(point.growth for point in proposal.path),
        search_change=tuple(point.change for point in proposal.path),
        seconds=time.perf_counter() - occasion.began,
        # The last are those that gave `losses_before`, one per probe batch.
        forwards=proposal.forwards + verdict.forwards + len(search.batches),
        backwards=proposal.backwards,
        passes=passes,
        ended=proposal.ended,
    )


def _mean_losses(losses: tuple[Tensor, ...]) -> tuple[float, ...]:
    # A task is averaged over the probe batches that have it.
    return tuple(torch.stack(losses).to(torch.float64).nanmean(dim=0).tolist())


def with_after(report: TeleportReport, gradients: TaskGradients) -> TeleportReport:
    """The report with what is measured at the new point."""
    cosines, norms, mean_norm = conflict_measures(gradients)
    return replace(report, cosines_after=cosines, norms_after=norms, mean_norm_after=mean_norm)


def rolled_back(report: TeleportReport, reason: str) -> TeleportReport:
    """The report of a move that was taken back."""
    return replace(report, accepted=False, reason=reason, sigma=None, length=0.0, relative_length=0.0, scale=0.0)
