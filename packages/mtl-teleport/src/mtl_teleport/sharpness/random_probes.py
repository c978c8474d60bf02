"""Sharpness by random perturbations, as in the paper."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl_core import TaskLosses, checks
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.sharpness.estimate import Point, Sharpness, Slopes
from mtl_teleport.sharpness.task_slopes import mean_weights, norm, pull_back, task_slopes, weighted

__all__ = ["ProbeNorm", "RandomSharpness"]

ProbeNorm = Literal["global", "tensor"]
"""Whether a perturbation has the length ``radius`` as a whole or in each tensor."""


class RandomSharpness(Sharpness):
    r"""The largest change of the weighted loss over random perturbations of one length.

    .. math:: \max_j \tfrac1\delta |L_R(\theta' + \varepsilon_j) - L_R(\theta')|, \qquad \|\varepsilon_j\| = \delta

    Args:
        probes: how many perturbations.
        radius: their length :math:`\delta`.
        norm: ``"global"``: each is uniform on the sphere of that radius (equation 8); ``"tensor"``: in each tensor
            (released code).

    Note:
        Equation 9 prints no subtracted term, equation 8 and the released code have it. The released code perturbs
        deep copies, so its term reaches the adapter only through the unperturbed loss. A random direction has a
        cosine of about :math:`1/\sqrt d` with the gradient, so in high dimension this estimate is small and noisy.
        Only the largest probe is evaluated with a graph.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equations 8 and 9.
    """

    is_random = True

    def __init__(self, probes: int = 5, radius: float = 1e-4, *, norm: ProbeNorm = "global") -> None:
        self.probes = checks.positive_int("probes", probes)
        self.radius = checks.positive("radius", radius)
        self.norm: ProbeNorm = checks.one_of("norm", norm, get_args(ProbeNorm))

    def gain(
        self,
        session: AdapterSession,
        batch: Any,
        point: Point,
        losses: TaskLosses,
        balance: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The largest absolute difference quotient."""
        base = weighted(losses, balance)
        moved = self._largest(session, batch, point, base.detach(), balance, generator)
        # The perturbation is constant; the graph is that of the point.
        steps = {name: tensor - point[name].detach() for name, tensor in moved.items()}
        moved = {name: point[name] + step for name, step in steps.items()}
        return (weighted(session.evaluate(batch, parameters=moved), balance) - base).abs() / self.radius

    def slopes(
        self,
        session: AdapterSession,
        batch: Any,
        point: Point,
        losses: TaskLosses,
        balance: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Slopes:
        """The part of the unperturbed loss is a combination of the tasks' rows, so it needs no pass of its own."""
        if not session.has_free_point:
            return super().slopes(session, batch, point, losses, balance, generator=generator)
        base = weighted(losses, balance).detach()
        found = task_slopes(session, point, losses)
        moved = self._largest(session, batch, point, base, balance, generator)
        moved = {name: tensor.requires_grad_() for name, tensor in moved.items()}
        value = weighted(session.evaluate(batch, parameters=moved), balance)
        change = value.detach() - base

        def directions() -> tuple[Tensor, Tensor]:
            ahead = pull_back(
                list(point.values()), session.trainable, session.differentiate(value, list(moved.values()))
            )
            behind = mean_weights(losses, balance).to(found.rows) @ found.rows
            return (ahead - behind) * (torch.sign(change) / self.radius).to(ahead), found.rows

        return Slopes(change.abs() / self.radius, directions, found.gramian)

    @torch.no_grad()
    def _largest(
        self,
        session: AdapterSession,
        batch: Any,
        point: Point,
        base: Tensor,
        balance: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """The perturbed point, of all that are tried, whose weighted loss differs most; a fresh, detached one."""
        best: dict[str, Tensor] | None = None
        largest = -math.inf
        for _ in range(self.probes):
            moved = self._perturbed(point, generator)
            if self.probes == 1:
                return moved
            change = float((weighted(session.evaluate(batch, parameters=moved), balance) - base).abs())
            if best is None or change > largest:
                best, largest = moved, change
            del moved
        assert best is not None
        return best

    def _perturbed(self, point: Point, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The point, moved by a random perturbation."""
        moved = {
            name: torch.randn(t.shape, generator=generator, device=t.device, dtype=t.dtype) for name, t in point.items()
        }
        whole = norm(list(moved.values()))
        for name, direction in moved.items():
            scale = self.radius / (whole if self.norm == "global" else direction.norm())
            direction.mul_(scale.to(direction.dtype)).add_(point[name])
        return moved
