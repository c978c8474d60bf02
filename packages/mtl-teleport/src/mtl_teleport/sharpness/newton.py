"""What the best step along the gradient would gain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import checks
from mtl_teleport.budget import passes
from mtl_teleport.search_context import Search
from mtl_teleport.sharpness.away import Away, GradientPoints, Tried, gradients_with_graph
from mtl_teleport.sharpness.estimate import Sharpness, SharpnessKind
from mtl_teleport.sharpness.point import Point, norm

__all__ = ["NewtonSharpness"]

_FLOOR = 0.1
"""Of the curvature where the search began: less curvature than this part of it gains no more."""


class NewtonSharpness(GradientPoints):
    r"""The squared slope over the curvature, along the gradient.

    .. math:: \frac{D^2}{\max(C, 0) + C_0}, \qquad
        D = \frac{L_R(\theta' + \delta u) - L_R(\theta' - \delta u)}{2\delta}, \qquad
        C = \frac{L_R(\theta' + \delta u) + L_R(\theta' - \delta u) - 2 L_R(\theta')}{\delta^2}

    with :math:`u = \nabla L_R(\theta') / \|\nabla L_R(\theta')\|`. It is twice what the loss would fall by the best
    step against the gradient, if it were quadratic: a point as narrow as it is steep is not taken for progress.
    :math:`C_0` is a tenth of the curvature's size where the search began, and keeps a curvature that passes through
    zero from deciding everything. Three evaluations are differentiated, and u with a Hessian-vector product: with u
    held, as for ``AscentSharpness``, the search went down, since the curvature turns with u.

    Args:
        radius: :math:`\delta`.

    Note:
        Beyond the paper. Every operation of the model must be twice differentiable.
    """

    name: SharpnessKind = "newton"

    def __init__(self, radius: float = 0.05) -> None:
        self.radius = checks.positive("radius", radius)
        self._floor: Tensor | None = None

    def for_search(self, search: Search) -> Sharpness:
        """A fresh one: the floor is that of one search."""
        return NewtonSharpness(self.radius)

    @property
    def passes(self) -> int:
        """At most, for a search that follows one gradient or several."""
        return passes(2, 4, 1)

    def _try(self, point: Point) -> _BothWays:
        weights, radius = point.weights, self.radius
        gradients = gradients_with_graph(point, weights)
        length = norm([g.detach() for g in gradients])
        inverse = torch.where(length > 0, 1.0 / torch.where(length > 0, length, 1.0), 0.0)
        units = [g.detach() * inverse.to(g) for g in gradients]
        ends = [Away.of(point, [sign * radius * unit for unit in units]) for sign in (1.0, -1.0)]
        here = point.combination(weights).detach()
        ahead, behind = (point.combination(weights, end.losses).detach() for end in ends)
        # Central differences, of second order both; the three losses are needed anyway.
        slope, curvature = (ahead - behind) / (2.0 * radius), (ahead + behind - 2.0 * here) / radius**2
        if self._floor is None:
            size = curvature.abs() * _FLOOR
            self._floor = torch.where(size > 0, size, torch.ones_like(size))
        total = curvature.clamp(min=0.0) + self._floor
        gain = slope * (slope / total)  # the square alone may be no number any more
        by_slope = slope / total / radius
        # Where the clamp holds, the curvature has no part in the quotient.
        by_curvature = torch.where(curvature > 0, -gain / total / radius**2, torch.zeros_like(gain))
        shares = [(by_curvature + sign * by_slope).to(weights) * weights for sign in (1.0, -1.0)]
        # What the curvature takes from the loss in the middle is the opposite of what it takes from the two ends.
        middle = -2.0 * by_curvature.to(weights) * weights
        return _BothWays(gain, gradients, middle, units, inverse, radius, ends, shares)


@dataclass
class _BothWays(Tried):
    """The losses at both ends of a step along the gradient.

    Attributes:
        units: their direction u.
        inverse: of their length.
        radius: the distance to either end.
        ends: ahead and behind.
        shares: derivatives of the quotient by the losses at either end, ``[k]``.
    """

    units: list[Tensor]
    inverse: Tensor
    radius: float
    ends: list[Away]
    shares: list[Tensor]

    def back_to(self, point: Point) -> tuple[Tensor, list[Tensor]]:
        """Through both ends."""
        ahead, by_ahead = self.ends[0].differentiate(point, self.shares[0])
        behind, by_behind = self.ends[1].differentiate(point, self.shares[1])
        by_unit = [self.radius * (a - b) for a, b in zip(by_ahead, by_behind, strict=True)]
        along = torch.stack([(a * u).sum() for a, u in zip(by_unit, self.units, strict=True)]).sum()
        # A direction does not change by what is along it.
        seeds = [self.inverse.to(a) * (a - along * u) for a, u in zip(by_unit, self.units, strict=True)]
        return ahead + behind, seeds
