"""Checks at the public door: each returns the value it was given, or says what is wrong with it."""

from mtl_core.checks.losses import (
    real_losses,
    scalar_loss,
)
from mtl_core.checks.matrices import (
    finite_jacobian,
    gramian,
    is_gramian,
    is_jacobian,
    is_possible,
    jacobian,
    square,
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
from mtl_core.checks.squares import (
    in_range,
    into_range,
    refuse_lost,
    refuse_lost_rows,
    row_norms,
    times_power,
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
    "refuse_lost",
    "refuse_lost_rows",
    "row_norms",
    "scalar_loss",
    "seed",
    "square",
    "times_power",
]
