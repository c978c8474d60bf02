"""Sharpness by random perturbations, as in the paper and in the released code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mtl_core import checks
from mtl_teleport.adapters.padding import padding_rows, without_rows
from mtl_teleport.budget import passes
from mtl_teleport.sharpness import quotient
from mtl_teleport.sharpness.estimate import Estimate, Sharpness, Slopes
from mtl_teleport.sharpness.point import Point, norm
from mtl_teleport.sharpness.task_slopes import task_slopes

__all__ = ["ProbeGradient", "ProbeMaximum", "ProbeNoise", "ProbeNorm", "RandomSharpness"]

ProbeNorm = Literal["global", "tensor"]
"""Whether a perturbation has the length ``radius`` as a whole or in each tensor."""

ProbeNoise = Literal["shared", "all"]
"""Whether the shared parameters are perturbed, or every parameter of the model: heads and norms too."""

ProbeMaximum = Literal["mean", "task"]
"""Whether the largest change is that of the weighted mean, or is sought for each task before the mean is taken."""

ProbeGradient = Literal["both", "unperturbed"]
"""Whether the estimate is differentiated through the perturbed losses too, or through the unperturbed ones alone."""


class RandomSharpness(Sharpness):
    r"""The largest change of the losses over random perturbations of one length.

    With :math:`d_{ij} = L_i(\theta' + \varepsilon_j) - L_i(\theta')` and :math:`\|\varepsilon_j\| = \delta`, over the k
    tasks present:

    ============== ======================================================================
    ``"mean"``     :math:`\max_j \tfrac1\delta |\tfrac1k\sum_i R_i d_{ij}|` (equation 8)
    ``"task"``     :math:`\tfrac1k\sum_i R_i \tfrac1\delta \max_j |d_{ij}|` (released code)
    ============== ======================================================================

    Args:
        probes: how many perturbations.
        radius: their length :math:`\delta`.
        norm: ``"global"``: each is uniform on the sphere of that radius (equation 8); ``"tensor"``: in each tensor
            (released code).
        noise: ``"shared"``: the shared parameters are perturbed; ``"all"``: all parameters of the model (released).
        maximum: one of the two forms above.
        gradient: ``"both"``: the derivative of the estimate; ``"unperturbed"``: of its part by :math:`L_i(\theta')`
            alone, :math:`L_i(\theta' + \varepsilon_j)` held (released: it perturbs deep copies, through which no
            gradient comes back).

    Raises:
        InvalidParameterError: a setting is out of its range.

    Note:
        Equation 9 prints no subtracted term, equation 8 and the released code have it. A random direction has a cosine
        of about :math:`1/\sqrt d` with the gradient, so in high dimension this estimate is small and noisy. Only the
        largest probe, or the largest of each task, is evaluated with a graph. Rows of shared embeddings that are
        padding are not perturbed, since no step moves them.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equations 8 and 9.
    """

    name = "random"

    is_random = True

    def __init__(
        self,
        probes: int = 5,
        radius: float = 1e-4,
        *,
        norm: ProbeNorm = "global",
        noise: ProbeNoise = "shared",
        maximum: ProbeMaximum = "mean",
        gradient: ProbeGradient = "both",
    ) -> None:
        self.probes = checks.positive_int("probes", probes)
        self.radius = checks.positive("radius", radius)
        self.norm: ProbeNorm = checks.one_of("norm", norm, get_args(ProbeNorm))
        self.noise: ProbeNoise = checks.one_of("noise", noise, get_args(ProbeNoise))
        self.maximum: ProbeMaximum = checks.one_of("maximum", maximum, get_args(ProbeMaximum))
        self.gradient: ProbeGradient = checks.one_of("gradient", gradient, get_args(ProbeGradient))

    @property
    def passes(self) -> int:
        """At most, for a search that follows one gradient or several."""
        # Each perturbed point at which some maximum lies is evaluated and differentiated again.
        again = self.probes if self.maximum == "task" else 1
        return passes(self.probes + again, 1 + again)

    def estimate(self, point: Point) -> Estimate:
        """The largest absolute change, and its gradient together with that of the losses."""
        gain, terms = self._largest(point)
        return quotient.estimate(point, gain, terms, through_terms=self.gradient == "both")

    def slopes(self, point: Point) -> Slopes:
        """The largest absolute change, and how it and each loss change with the adapter."""
        found = task_slopes(point)
        gain, terms = self._largest(point)
        return quotient.slopes(point, gain, terms, found, through_terms=self.gradient == "both")

    @torch.no_grad()
    def _largest(self, point: Point) -> tuple[Tensor, list[quotient.Term]]:
        """The estimate, and the perturbed points that it was found at with their part in it."""
        weights = point.weights / self.radius
        base = point.losses.values.detach()
        # Per maximum (one, or one a task): the largest change so far, its sign, and the probe that gave it. Only the
        # points of such probes are kept, since each is as large as the parameters.
        places = len(base) if self.maximum == "task" else 1
        best = [(-1.0, 0.0, -1)] * places
        kept: dict[int, dict[str, Tensor]] = {}
        for probe in range(self.probes):
            moved = self._perturbed(point)
            change = point.session.evaluate_without_graph(point.batch, parameters=moved).values - base
            seen = change if self.maximum == "task" else (weights.to(change) * change).sum()[None]
            for place, value in enumerate(seen.tolist()):
                # The second condition lets a first probe count whose change is NaN, so that there always is one.
                if abs(value) > best[place][0] or best[place][2] < 0:
                    best[place] = (abs(value), float(value > 0) - float(value < 0), probe)
            kept[probe] = moved
            wanted = {where for _, _, where in best}
            kept = {where: values for where, values in kept.items() if where in wanted}
            del moved
        sizes = torch.tensor([size for size, _, _ in best], dtype=weights.dtype, device="cpu")
        gain = (weights.to(sizes) * sizes).sum() if self.maximum == "task" else sizes[0]
        return gain.to(base), [quotient.Term(kept[where], _part(best, where, weights)) for where in sorted(kept)]

    def _perturbed(self, point: Point) -> dict[str, Tensor]:
        """The point, moved by a random perturbation; fresh and detached."""
        start: Mapping[str, Tensor] = point.values
        if self.noise == "all":
            start = {**point.values, **point.session.others()}
        still = padding_rows(point.session.problem)
        moved = {
            name: without_rows(
                torch.randn(t.shape, generator=point.generator, device=t.device, dtype=t.dtype), still.get(name)
            )
            for name, t in start.items()
        }
        whole = norm(list(moved.values()))
        for name, direction in moved.items():
            length = whole if self.norm == "global" else direction.norm()
            scale = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
            # In the memory of the draw, which is as large as the parameters.
            direction.mul_(scale.to(direction.dtype)).add_(start[name])
        return moved


def _part(best: list[tuple[float, float, int]], where: int, weights: Tensor) -> Tensor:
    """The coefficients of the losses at one perturbed point: signed weights of the tasks whose largest change it is."""
    signs = torch.tensor([sign if at == where else 0.0 for _, sign, at in best], dtype=weights.dtype, device="cpu")
    return weights * signs.to(weights.device)
