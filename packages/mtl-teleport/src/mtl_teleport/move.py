"""One move: what a search proposes, and how its result is written and told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl_core import Problem, TaskGradients
from mtl_teleport.acceptance import Verdict
from mtl_teleport.adapters.protocol import write_
from mtl_teleport.history import trajectory_cosine
from mtl_teleport.report import TeleportReport, conflict_measures
from mtl_teleport.search_context import Search

__all__ = ["Proposal", "Seen", "described", "length_of", "rolled_back", "with_after", "written"]


@dataclass(frozen=True)
class Proposal:
    """A displacement by parameter name, the work that it took to find, and the points that the search looked at."""

    delta: dict[str, Tensor]
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    path: tuple[tuple[tuple[float, ...], float], ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a teleport remembers of the gradients before it: their Gramian, the update due, cosines and norms."""

    gramian: Tensor
    update: dict[str, Tensor]
    measures: tuple[tuple[float, ...], tuple[float, ...], float]

    @classmethod
    def of(cls, gradients: TaskGradients, update: dict[str, Tensor]) -> Seen:
        """Of the gradients and the update that was due."""
        return cls(gradients.host_gramian, update, conflict_measures(gradients))


def written(
    shared: Mapping[str, Tensor], values: dict[str, Tensor], update: Mapping[str, Tensor]
) -> tuple[float, float, dict[str, Tensor]]:
    """Write new values into the shared parameters.

    Args:
        shared: the parameters by name.
        values: what to write, by name; used up.
        update: the update that was due before the move.

    Returns:
        the cosine of the move with that update, its length, and what was there before.
    """
    sigma = trajectory_cosine(values, update, start=shared)
    length = length_of(values, start=shared)
    return sigma, length, _exchange(shared, values)


def described(
    problem: Problem,
    search: Search,
    seen: Seen,
    proposal: Proposal,
    verdict: Verdict,
    *,
    theta: float,
    moved: tuple[float, float] | None,
    seconds: float,
    step: int,
    epoch: int | None,
    trigger: str,
) -> TeleportReport:
    """The report on a move, which lacks what is measured after it.

    Args:
        problem: the problem.
        search: what the search used.
        seen: the gradients before.
        proposal: what it proposed.
        verdict: what became of that.
        theta: norm of the shared parameters before.
        moved: the cosine with the update and the length, if the move was written.
        seconds: that it took.
        step: number of the step.
        epoch: number of the epoch, if there is one.
        trigger: name of the condition.
    """
    cosines, norms, mean_norm = seen.measures
    sigma, length = (None, 0.0) if moved is None else moved
    return TeleportReport(
        step=step,
        epoch=epoch,
        trigger=trigger,
        tasks=problem.tasks,
        accepted=moved is not None,
        reason=verdict.reason,
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
        relative_length=length / theta if theta > 0 else math.inf if length > 0 else 0.0,
        scale=verdict.scale,
        adapter_steps=proposal.steps,
        search_losses=tuple(losses for losses, _ in proposal.path),
        search_growth=tuple(growth for _, growth in proposal.path),
        seconds=seconds,
        forwards=proposal.forwards + verdict.forwards + len(search.batches),
        backwards=proposal.backwards,
    )


def _mean_losses(losses: tuple[Tensor, ...]) -> tuple[float, ...]:
    return tuple(torch.stack(losses).to(torch.float64).nanmean(dim=0).tolist())


def length_of(tensors: Mapping[str, Tensor], *, start: Mapping[str, Tensor] | None = None) -> float:
    """The norm of all tensors together, or of their difference from where they started."""
    squares = 0.0
    for name, tensor in tensors.items():
        step = tensor.detach() if start is None else tensor.detach() - start[name].detach()
        squares += float(step.to(torch.float64).square().sum())
    return math.sqrt(squares)


def _exchange(shared: Mapping[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write ``values``, and put into their place what was there; one copy at a time."""
    for name, value in values.items():
        before = shared[name].detach().clone()
        write_(shared, {name: value})
        values[name] = before
    return values


def with_after(report: TeleportReport, gradients: TaskGradients) -> TeleportReport:
    """The report with what is measured at the new point."""
    cosines, norms, mean_norm = conflict_measures(gradients)
    return replace(report, cosines_after=cosines, norms_after=norms, mean_norm_after=mean_norm)


def rolled_back(report: TeleportReport, reason: str) -> TeleportReport:
    """The report of a move that was taken back."""
    return replace(report, accepted=False, reason=reason, sigma=None, length=0.0, relative_length=0.0, scale=0.0)
