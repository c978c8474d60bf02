"""The estimate of the sharpness by its name."""

from __future__ import annotations

from typing import get_args

from mtl_core import InvalidParameterError, checks
from mtl_teleport.sharpness.ascent import AscentSharpness
from mtl_teleport.sharpness.estimate import Sharpness, SharpnessKind
from mtl_teleport.sharpness.exact import ExactSharpness
from mtl_teleport.sharpness.random_probes import ProbeGradient, ProbeMaximum, ProbeNoise, ProbeNorm, RandomSharpness

__all__ = ["make_sharpness"]


def make_sharpness(
    kind: SharpnessKind,
    *,
    radius: float | None,
    probes: int,
    norm: ProbeNorm,
    noise: ProbeNoise,
    maximum: ProbeMaximum,
    gradient: ProbeGradient,
) -> Sharpness:
    """An estimate with its settings; those that it does not have are checked all the same.

    Args:
        kind: its name.
        radius: length of a perturbation, or ``None`` for the estimate's own.
        probes: how many perturbations, for ``"random"``.
        norm: ``probe_norm`` of ``COST``, for ``"random"``.
        noise: ``probe_noise`` of ``COST``, for ``"random"``.
        maximum: ``probe_maximum`` of ``COST``, for ``"random"``.
        gradient: ``probe_gradient`` of ``COST``, for ``"random"``.

    Raises:
        InvalidParameterError: a setting is out of its range, or ``"exact"`` is given a radius.
    """
    checks.one_of("sharpness", kind, get_args(SharpnessKind))
    checks.positive_int("probes", probes)
    checks.one_of("probe_norm", norm, get_args(ProbeNorm))
    checks.one_of("probe_noise", noise, get_args(ProbeNoise))
    checks.one_of("probe_maximum", maximum, get_args(ProbeMaximum))
    checks.one_of("probe_gradient", gradient, get_args(ProbeGradient))
    if radius is not None:
        checks.positive("radius", radius)
    if kind == "exact":
        if radius is not None:
            raise InvalidParameterError(
                f"`radius` must be None for sharpness='exact', which perturbs nothing, got {radius!r}. Choose 'ascent' "
                "or 'random' for a radius."
            )
        return ExactSharpness()
    if kind == "ascent":
        return AscentSharpness() if radius is None else AscentSharpness(radius)
    length = 1e-4 if radius is None else radius
    return RandomSharpness(probes, length, norm=norm, noise=noise, maximum=maximum, gradient=gradient)
