"""Checks at the public door: each returns the value it was given, or says what is wrong with it."""

from mtl_core.checks.losses import (
    real_losses,
    scalar_loss,
)
from mtl_core.checks.matrices import (
    finite_jacobian,
    gramian,
    in_range,
    into_range,
    is_gramian,
    is_jacobian,
    is_possible,
    jacobian,
    square,
    times_power,
)
from mtl_core.checks.settings import (
    boolean,
    finite,
    generator,
    in_interval,
    instance,
    names,
    non_negative,
    one_of,
    positive,
    positive_int,
    seed,
)

__all__ = [
    "boolean",
    "finite",
    "finite_jacobian",
    "generator",
    "gramian",
    "in_interval",
    "in_range",
    "instance",
    "into_range",
    "is_gramian",
    "is_jacobian",
    "is_possible",
    "jacobian",
    "names",
    "non_negative",
    "one_of",
    "positive",
    "positive_int",
    "real_losses",
    "scalar_loss",
    "seed",
    "square",
    "times_power",
]
