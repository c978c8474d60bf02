"""Sharpness by one step of ascent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_core import checks
from mtl_teleport.budget import passes
from mtl_teleport.sharpness import quotient
from mtl_teleport.sharpness.estimate import Estimate, Sharpness, SharpnessKind, Slopes
from mtl_teleport.sharpness.point import Point, norm
from mtl_teleport.sharpness.task_slopes import task_slopes

__all__ = ["AscentSharpness"]


class AscentSharpness(Sharpness):
    r"""The change of the weighted loss along one step of ascent.

    .. math:: \tfrac1\delta \bigl(L_R(\theta' + \delta u) - L_R(\theta')\bigr), \qquad
        u = \nabla L_R(\theta') / \|\nabla L_R(\theta')\|

    The direction u counts as constant (first order). Two evaluations, whatever the dimension.

    Args:
        radius: length :math:`\delta` of the perturbation.

    Note:
        Beyond the paper. The perturbation is the maximiser of equation 8 to first order.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021, equation 2.
    """

    name: SharpnessKind = "ascent"

    def __init__(self, radius: float = 0.05) -> None:
        self.radius = checks.positive("radius", radius)

    @property
    def passes(self) -> int:
        """At most, for a search that follows one gradient or several."""
        return passes(1, 3)

    def estimate(self, point: Point) -> Estimate:
        """The difference quotient along the gradient: two evaluations, and three passes once it is differentiated."""
        base = point.combination(point.weights)
        # The graph is kept for the derivative of the unperturbed part.
        gradients = point.session.differentiate(base, point.tensors, at=point.values, retain_graph=True)
        gain, term = self._ahead(point, gradients)
        return quotient.estimate(point, gain, [term])

    def slopes(self, point: Point) -> Slopes:
        """As ``estimate``; the tasks' own gradients give the direction u, so that it needs no pass of its own."""
        found = task_slopes(point, weighted=True)
        assert found.weighted is not None
        gain, term = self._ahead(point, found.weighted, in_place=True)
        found.weighted.clear()  # its tensors are the perturbed point now
        return quotient.slopes(point, gain, [term], found)

    def _ahead(
        self, point: Point, gradients: Sequence[Tensor], *, in_place: bool = False
    ) -> tuple[Tensor, quotient.Term]:
        """The quotient, and the perturbed point with its graph; ``in_place``, it takes the gradients' memory."""
        length = norm(gradients)
        # At a stationary point there is no direction, and no perturbation.
        step = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
        with torch.no_grad():
            moved = {
                name: torch.addcmul(tensor, gradient, step.to(tensor.dtype), out=gradient if in_place else None)
                for (name, tensor), gradient in zip(point.values.items(), gradients, strict=True)
            }
        moved = {name: tensor.requires_grad_() for name, tensor in moved.items()}
        losses = point.session.evaluate(point.batch, parameters=moved)
        own = point.weights / self.radius
        # Loss by loss before the weighted sum: the difference of two sums would lose more digits.
        change = losses.values.detach() - point.losses.values.detach()
        return (own.to(change) * change).sum(), quotient.Term(moved, own, losses)
