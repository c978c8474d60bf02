"""The estimate of the sharpness by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from mtl_core import InvalidParameterError, checks
from mtl_teleport.sharpness.ascent import AscentSharpness
from mtl_teleport.sharpness.estimate import Sharpness, SharpnessKind
from mtl_teleport.sharpness.exact import ExactSharpness
from mtl_teleport.sharpness.flatness import Flatness
from mtl_teleport.sharpness.look_ahead import LookAhead
from mtl_teleport.sharpness.newton import NewtonSharpness
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
    horizon: float,
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
        horizon: how many steps are made at once, for ``"look-ahead"``.

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
    checks.positive("horizon", horizon)
    if kind in ("exact", "look-ahead"):
        if radius is not None:
            raise InvalidParameterError(
                f"`radius` must be None for sharpness={kind!r}, which perturbs nothing, got {radius!r}. Choose "
                "'ascent' or 'random' for a radius."
            )
        return ExactSharpness() if kind == "exact" else LookAhead(horizon)
    if kind in ("ascent", "newton", "flat"):
        cls: Callable[..., Sharpness] = {"ascent": AscentSharpness, "newton": NewtonSharpness, "flat": Flatness}[kind]
        return cls() if radius is None else cls(radius)
    length = 1e-4 if radius is None else radius
    return RandomSharpness(probes, length, norm=norm, noise=noise, maximum=maximum, gradient=gradient)
