r"""Sharpness: how steep the weighted loss is at the adapted point :math:`\theta' = \theta + \Delta\theta(\varphi)`.

With :math:`L_R = \frac1k\sum_i R_i L_i` over the k tasks present, every estimate here stands for :math:`\|\nabla
L_R(\theta')\|` and is differentiable by :math:`\varphi`, through the perturbation as well: perturbed losses are
evaluated functionally at :math:`\theta'(\varphi) + \varepsilon`.
"""

from mtl_teleport.sharpness.ascent import AscentSharpness
from mtl_teleport.sharpness.estimate import Sharpness, SharpnessKind, Slopes
from mtl_teleport.sharpness.exact import ExactSharpness
from mtl_teleport.sharpness.random_probes import ProbeNorm, RandomSharpness
from mtl_teleport.sharpness.task_slopes import flat

__all__ = [
    "AscentSharpness",
    "ExactSharpness",
    "ProbeNorm",
    "RandomSharpness",
    "Sharpness",
    "SharpnessKind",
    "Slopes",
    "flat",
]
