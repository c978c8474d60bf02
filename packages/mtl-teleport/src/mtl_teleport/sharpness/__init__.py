r"""Sharpness: how steep the weighted loss is at the adapted point :math:`\theta' = \theta + \Delta\theta(\varphi)`.

With :math:`L_R = \frac1k\sum_i R_i L_i` over the k tasks present, every estimate here stands for :math:`\|\nabla
L_R(\theta')\|` and is differentiated by :math:`\varphi`, through the perturbation as well: perturbed losses are
evaluated at :math:`\theta'(\varphi) + \varepsilon`. ``NewtonSharpness``, ``LookAhead`` and ``Flatness`` are other
quantities that an adapter may climb in its place.
"""

from mtl_teleport.sharpness.ascent import AscentSharpness
from mtl_teleport.sharpness.estimate import Estimate, Sharpness, SharpnessKind, Slopes
from mtl_teleport.sharpness.exact import ExactSharpness
from mtl_teleport.sharpness.flatness import Flatness
from mtl_teleport.sharpness.look_ahead import LookAhead
from mtl_teleport.sharpness.newton import NewtonSharpness
from mtl_teleport.sharpness.point import Point, flat
from mtl_teleport.sharpness.random_probes import ProbeGradient, ProbeMaximum, ProbeNoise, ProbeNorm, RandomSharpness

__all__ = [
    "AscentSharpness",
    "Estimate",
    "ExactSharpness",
    "Flatness",
    "LookAhead",
    "NewtonSharpness",
    "Point",
    "ProbeGradient",
    "ProbeMaximum",
    "ProbeNoise",
    "ProbeNorm",
    "RandomSharpness",
    "Sharpness",
    "SharpnessKind",
    "Slopes",
    "flat",
]
