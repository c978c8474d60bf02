"""Hold any aggregator to the laws it declares; needs ``mtl-aggregators[testing]``.

The suite is for methods of this package and for anybody's: all it asks for is a callable from a Jacobian ``[m, d]``
to an update ``[d]``. Methods that have ``weights(gramian)`` are also checked through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import DeclaresFacts, Facts, Law
from mtl_aggregators.bases.three_batches import ThreeBatchMethod
from mtl_aggregators.solvers.solution import TellsSolution
from mtl_core import InvalidInputError, MissingExtraError, UnknownNameError, Weighting, individual_progress
from mtl_core.extension import TakesLosses, gramian_of, offers, weighted_sum

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from mtl_core.testing import (
        assert_equal_rows_give_their_direction,
        assert_equivariant_to_permutation,
        assert_finite,
        assert_in_simplex,
        jacobians,
        rotations,
        tolerance,
    )
except ImportError as error:
    raise MissingExtraError("mtl_aggregators.conformance", "mtl-aggregators[testing]") from error

__all__ = ["LAWS", "check_aggregator", "check_law"]

LAWS: tuple[Law, ...] = get_args(Law)
"""Every law that can be declared."""

Factory = Callable[[], Any]
Always = Literal["finite", "same_in_float32"]

_TOLERANCE = 1e-6
_N_TASKS = (1, 2, 3, 40)


def check_aggregator(factory: Factory, laws: Collection[Law] | None = None, *, max_examples: int = 60) -> None:
    """Run a method's laws over structured Jacobians.

    They have 1, 2, 3 and 40 tasks (those of them that a method takes, by its ``facts.min_tasks``), row norms up to six
    decades apart, a global scale from 1e-8 to 1e8, and zero,
    duplicated, opposite, near-parallel or linearly dependent rows. Whatever a method declares, its update must be
    finite for every finite Jacobian in float64, float32 and bfloat16, and agree between float32 and float64.

    Args:
        factory: makes a fresh method; called for every evaluation, so that no state carries over. Methods of three
            batches (``SDMGrad``, ``MoDo``) are checked as if these had the same gradients.
        laws: the laws to check; ``None`` for those that the method's ``facts`` declare.
        max_examples: Jacobians per law. They are the same in every run.

    Raises:
        AssertionError: a law does not hold; the message shows the Jacobian, made as simple as possible.
        InvalidInputError: ``laws`` is ``None`` and the method declares none.
        UnknownNameError: there is no such law.

    Example:
        >>> check_aggregator(lambda: lambda jacobian: jacobian.sum(0), laws={"equal_rows"}, max_examples=5)
    """
    factory = _as_aggregator(factory)
    if laws is None:
        facts = _facts_of(factory())
        if facts is None:
            raise InvalidInputError(
                "`laws` must be given for a method without `facts`, got None. Name the laws that it claims: "
                + ", ".join(LAWS)
            )
        laws = facts.laws
    for law in laws:
        if law not in LAWS:
            raise UnknownNameError("law", law, LAWS)
    for always in get_args(Always):
        _run(factory, always, max_examples)
    for law in sorted(laws):
        _run(factory, law, max_examples)


def _run(factory: Factory, law: Law | Always, max_examples: int) -> None:
    facts = _facts_of(factory())
    fewest = 1 if facts is None else facts.min_tasks
    n_tasks = [m for m in (*_N_TASKS, fewest) if m >= fewest]
    # In float64 a law is held to the mathematics; what a narrower dtype adds is a matter of two laws of its own.
    types = (torch.float64, torch.float32, torch.bfloat16) if law == "finite" else (torch.float64,)

    @settings(
        max_examples=max_examples,
        deadline=None,
        # The same examples in every run: a suite that fails now and then is not looked at.
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(jacobian=jacobians(n_tasks=n_tasks, dtypes=types), seed=st.integers(0, 2**16))
    def holds(jacobian: Tensor, seed: int) -> None:
        check_law(factory, law, jacobian, seed=seed)

    holds()


def check_law(factory: Factory, law: Law | Always, jacobian: Tensor, *, seed: int = 0) -> None:
    """Check one law on one Jacobian.

    Args:
        factory: makes a fresh method.
        law: its name.
        jacobian: ``[m, d]``.
        seed: of the permutation, rotation, factor or combination that the law needs.

    Raises:
        AssertionError: the law does not hold.
    """
    _CHECKS[law](_as_aggregator(factory), jacobian, seed)


class _OnOneBatch:
    """A method of three batches where these agree."""

    def __init__(self, method: ThreeBatchMethod) -> None:
        self.method, self.facts = method, method.facts

    def weights(self, gramian: Tensor) -> Tensor:
        return self.method.weigh(gramian.double())

    def __call__(self, jacobian: Tensor) -> Tensor:
        return weighted_sum(jacobian, self.weights(gramian_of(jacobian)))


def _facts_of(method: Any) -> Facts | None:
    return method.facts if offers(method, DeclaresFacts) and isinstance(method.facts, Facts) else None


def _as_aggregator(factory: Factory) -> Factory:
    def make() -> Any:
        method = factory()
        return _OnOneBatch(method) if isinstance(method, ThreeBatchMethod) else method

    return make


def _ingredients(factory: Factory, jacobian: Tensor) -> float:
    """The size of what an update is summed from: what its rounding errors are relative to."""
    norms = jacobian.double().norm(dim=1)
    method = factory()
    if offers(method, Weighting) and not (offers(method, TakesLosses) and method.takes_losses):
        return float(method.weights(gramian_of(jacobian)).abs() @ norms)
    return float(norms.max()) + float(method(jacobian).double().norm())


def _assert_close(found: Tensor, expected: Tensor, size: float, tol: float, what: str) -> None:
    worst = float((found.double() - expected.double()).abs().max())
    assert worst <= tol * size, f"{what}: off by {worst:.3e}, allowed {tol * size:.3e}"


def _finite(factory: Factory, jacobian: Tensor, seed: int) -> None:
    assert_finite(factory(), jacobian)


def _same_in_float32(factory: Factory, jacobian: Tensor, seed: int) -> None:
    narrow = jacobian.to(torch.float32)
    wide = narrow.double()
    size = _ingredients(factory, wide)
    _assert_close(factory()(narrow), factory()(wide), size, 1e-5, "float32 against float64")


def _non_conflicting(factory: Factory, jacobian: Tensor, seed: int) -> None:
    for dtype in (torch.float64, torch.float32):
        matrix = jacobian.to(dtype)
        method = factory()
        update = method(matrix)
        limit = tolerance(dtype)
        if offers(method, TellsSolution) and method.last_solution.regularised:
            # The method says that it solved another problem, for its own has no solution here.
            continue
        # An update lost in rounding beside its ingredients has no direction to speak of.
        if float(update.double().norm()) > limit * _ingredients(factory, matrix):
            cosines = individual_progress(matrix, update)
            assert float(cosines.min()) >= -limit, f"cosines of the {dtype} update: {cosines.tolist()}"


def _permutation(factory: Factory, jacobian: Tensor, seed: int) -> None:
    order = torch.randperm(len(jacobian), generator=torch.Generator().manual_seed(seed), device="cpu")
    if offers(factory(), Weighting):
        gramian = gramian_of(jacobian)
        assert_equivariant_to_permutation(lambda g: factory().weights(g), gramian, order, tol=_TOLERANCE)
    found, expected = factory()(jacobian[order]), factory()(jacobian)
    _assert_close(found, expected, _ingredients(factory, jacobian), _TOLERANCE, "A(PJ) against A(J)")


def _homogeneous(factory: Factory, jacobian: Tensor, seed: int) -> None:
    # A power of two, which is exact; a loss scale; and factors that round.
    factor = (2.0**-40, 1e-7, 0.3, 65536.0, 1e7)[seed % 5]
    facts = _facts_of(factory())
    degree = 1.0 if facts is None or facts.homogeneity is None else facts.homogeneity
    expected = factory()(jacobian) * factor**degree
    size = _ingredients(factory, jacobian) * factor**degree
    what = f"A({factor:g} J) against {factor:g}^{degree:g} A(J)"
    _assert_close(factory()(jacobian * factor), expected, size, _TOLERANCE, what)


def _orthogonal(factory: Factory, jacobian: Tensor, seed: int) -> None:
    rotation = rotations(jacobian.shape[1], seed)
    found, expected = factory()(jacobian @ rotation), factory()(jacobian) @ rotation
    _assert_close(found, expected, _ingredients(factory, jacobian), _TOLERANCE, "A(JQ) against A(J)Q")


def _simplex(factory: Factory, jacobian: Tensor, seed: int) -> None:
    assert_in_simplex(factory().weights(gramian_of(jacobian)))


def _equal_rows(factory: Factory, jacobian: Tensor, seed: int) -> None:
    row = jacobian[int(jacobian.double().norm(dim=1).argmax())]
    if float(row.norm()) > 0.0:
        for dtype in (torch.float64, torch.float32):
            assert_equal_rows_give_their_direction(factory(), row.to(dtype), len(jacobian))


def _zero_when_stationary(factory: Factory, jacobian: Tensor, seed: int) -> None:
    shares = (
        torch.rand(len(jacobian), generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
        + 0.1
    )
    # One gradient more, with which a positive combination of all vanishes.
    closing = -(shares.to(jacobian) @ jacobian)
    closed = torch.cat([jacobian, closing.unsqueeze(0)])
    size = float(closed.norm(dim=1).max())
    found = float(factory()(closed).norm())
    assert found <= _TOLERANCE * size, f"update of norm {found:.3e} at a stationary point with gradients of {size:.3e}"


def _ball(factory: Factory, jacobian: Tensor, seed: int) -> None:
    method = factory()
    mean = jacobian.mean(dim=0)
    distance = float((method(jacobian) - mean).norm())
    allowed = method.c * float(mean.norm()) * (1.0 + _TOLERANCE) + 1e-12 * _ingredients(factory, jacobian)
    assert distance <= allowed, f"distance {distance:.6e} from the mean gradient, allowed {allowed:.6e}"


def _zero_rows(factory: Factory, jacobian: Tensor, seed: int) -> None:
    place = seed % (len(jacobian) + 1)
    zero = jacobian.new_zeros(1, jacobian.shape[1])
    padded = torch.cat([jacobian[:place], zero, jacobian[place:]])
    without, with_zero = factory()(jacobian), factory()(padded)
    size = float(without.norm())
    if size > tolerance(torch.float64) * _ingredients(factory, jacobian):
        # The length may depend on the number of tasks, the direction may not.
        scaled = with_zero * (size / max(float(with_zero.norm()), 1e-300))
        _assert_close(scaled, without, _ingredients(factory, jacobian), _TOLERANCE, "with a zero row against without")


_CHECKS: dict[Law | Always, Callable[[Factory, Tensor, int], None]] = {
    "finite": _finite,
    "same_in_float32": _same_in_float32,
    "non_conflicting": _non_conflicting,
    "permutation": _permutation,
    "homogeneous": _homogeneous,
    "orthogonal": _orthogonal,
    "simplex": _simplex,
    "equal_rows": _equal_rows,
    "zero_when_stationary": _zero_when_stationary,
    "ball": _ball,
    "zero_rows": _zero_rows,
}
