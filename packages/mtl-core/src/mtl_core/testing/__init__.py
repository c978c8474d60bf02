"""Hypothesis strategies and laws for tests of multi-task methods; needs ``mtl-core[testing]``.

The strategies draw structure, not noise: how many tasks, how their gradients' norms spread, which rows are zero,
repeated, opposite or nearly parallel. The laws are plain functions that take a method and a matrix and raise
``AssertionError``.
"""

from mtl_core.errors import MissingExtraError

try:
    import hypothesis as _hypothesis
except ImportError as error:
    raise MissingExtraError("mtl_core.testing", "mtl-core[testing]") from error

del _hypothesis

from mtl_core.testing.faults import Fault, FaultyNet, faulty_problem  # noqa: E402
from mtl_core.testing.laws import (  # noqa: E402
    assert_equal_rows_give_their_direction,
    assert_equivariant_to_permutation,
    assert_finite,
    assert_homogeneous,
    assert_in_cone,
    assert_in_simplex,
    assert_invariant_to_rotation,
    assert_linear_under_scaling,
    assert_non_conflicting,
    assert_same_in_float32,
    assert_zero_at_stationary,
    tolerance,
)
from mtl_core.testing.problems import TwoLayers, reference_jacobian, small_problem  # noqa: E402
from mtl_core.testing.ranks import leave  # noqa: E402
from mtl_core.testing.strategies import (  # noqa: E402
    STRUCTURES,
    gramians,
    jacobian_of,
    jacobians,
    losses,
    rotations,
)

__all__ = [
    "STRUCTURES",
    "Fault",
    "FaultyNet",
    "TwoLayers",
    "assert_equal_rows_give_their_direction",
    "assert_equivariant_to_permutation",
    "assert_finite",
    "assert_homogeneous",
    "assert_in_cone",
    "assert_in_simplex",
    "assert_invariant_to_rotation",
    "assert_linear_under_scaling",
    "assert_non_conflicting",
    "assert_same_in_float32",
    "assert_zero_at_stationary",
    "faulty_problem",
    "gramians",
    "jacobian_of",
    "jacobians",
    "leave",
    "losses",
    "reference_jacobian",
    "rotations",
    "small_problem",
    "tolerance",
]
