"""Flatness: sharpness with the opposite sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from mtl_teleport.sharpness import quotient
from mtl_teleport.sharpness.ascent import AscentSharpness
from mtl_teleport.sharpness.estimate import SharpnessKind
from mtl_teleport.sharpness.point import Point

__all__ = ["Flatness"]


class Flatness(AscentSharpness):
    r"""How little the weighted loss rises along one step of ascent: ``AscentSharpness`` times -1.

    .. math:: -\tfrac1\delta \bigl(L_R(\theta' + \delta u) - L_R(\theta')\bigr)

    What sharpness-aware minimisation lowers beside the loss, lowered at equal losses. It is for late in training, where
    flat points may generalise better than sharp ones of the same training loss; early it makes training slower.

    Args:
        radius: length :math:`\delta` of the perturbation.

    Note:
        Beyond the paper, and the opposite of its aim.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021, equation 2.
    """

    name: SharpnessKind = "flat"

    def _ahead(
        self, point: Point, gradients: Sequence[Tensor], *, in_place: bool = False
    ) -> tuple[Tensor, quotient.Term]:
        gain, term = super()._ahead(point, gradients, in_place=in_place)
        # Both signs, so that value and derivative stay those of one function.
        return -gain, replace(term, coefficients=-term.coefficients)
