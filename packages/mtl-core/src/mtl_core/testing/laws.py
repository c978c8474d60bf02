"""Laws that an aggregator or weighting may claim, as functions that raise ``AssertionError``.

An *aggregator* here is any callable from a Jacobian ``[m, d]`` to an update ``[d]``. Every comparison is relative to
the size of what is compared: a law must hold for gradients of 1e-8 as for gradients of 1e8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtl_core.conflict import individual_progress

__all__ = [
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
    "tolerance",
]

AggregatorLike = Callable[[Tensor], Tensor]


def tolerance(dtype: torch.dtype, *, factor: float = 1.0) -> float:
    """The relative tolerance for results computed from gradients of a dtype: ``factor`` times the root of its unit.

    Solvers see the Gramian, whose entries carry the unit rounding; angles and weights follow it to half the digits
    where gradients are nearly dependent.
    """
    return float(torch.finfo(dtype).eps ** 0.5) * factor


def _close(found: Tensor, expected: Tensor, size: Tensor | float, tol: float, what: str) -> None:
    worst = (found.double() - expected.double()).abs().max() if found.numel() else torch.zeros(())
    limit = tol * float(size)
    assert float(worst) <= limit, f"{what}: off by {float(worst):.3e}, allowed {limit:.3e}"


def assert_finite(aggregator: AggregatorLike, jacobian: Tensor) -> None:
    """A finite Jacobian gives a finite update of the shape and dtype of its rows."""
    update = aggregator(jacobian)
    assert update.shape == jacobian.shape[1:], f"shape {tuple(update.shape)} for a Jacobian {tuple(jacobian.shape)}"
    assert update.dtype == jacobian.dtype, f"dtype {update.dtype} for a Jacobian of {jacobian.dtype}"
    assert bool(torch.isfinite(update).all()), f"not finite: {update}"


def assert_non_conflicting(aggregator: AggregatorLike, jacobian: Tensor, *, tol: float | None = None) -> None:
    r"""No task gets worse to first order: :math:`\cos(g_i, A(J)) \ge -\text{tol}` for every row.

    Measured as a cosine per row, since an absolute or joint tolerance hides a task whose gradient is small. An update
    that is lost in rounding beside the gradients is let pass; that comparison supposes a method of degree 1, whose
    updates are of the size of gradients. For another degree, scale the gradients to about 1 first.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        jacobian: the gradients ``[m, d]``.
        tol: the relative tolerance; ``None`` for that of the dtype, see ``tolerance``.
    """
    update = aggregator(jacobian)
    cosine = individual_progress(jacobian, update)
    limit = tolerance(jacobian.dtype) if tol is None else tol
    # An update lost in rounding beside its ingredients has no direction to speak of.
    if float(update.double().norm()) <= limit * float(jacobian.double().norm(dim=1).max()):
        return
    assert float(cosine.min()) >= -limit, f"cosines with the update: {cosine.tolist()}"


def assert_equivariant_to_permutation(
    weights: Callable[[Tensor], Tensor], gramian: Tensor, permutation: Tensor, *, tol: float = 1e-6
) -> None:
    """Renaming the tasks renames the weights: the combined update, and each task's share of it, is the same.

    Compared by what the weights do, the product with the Gramian's factor, since at a singular Gramian they need not be
    unique.

    Args:
        weights: a function from a Gramian ``[m, m]`` to weights ``[m]``.
        gramian: ``[m, m]``.
        permutation: of the tasks, ``[m]``, whole numbers.
        tol: the relative tolerance.
    """
    before = weights(gramian).double()
    after = weights(gramian[permutation][:, permutation]).double()
    difference = torch.zeros_like(before)
    difference[permutation] = after
    difference -= before
    size = (before @ gramian @ before).clamp(min=0).sqrt() + (before.abs() * gramian.diagonal().sqrt()).max()
    moved = (difference @ gramian @ difference).clamp(min=0).sqrt()
    assert float(moved) <= tol * float(size) + 1e-300, f"the update moves by {float(moved):.3e} of {float(size):.3e}"


def assert_homogeneous(
    aggregator: AggregatorLike, jacobian: Tensor, factor: float, degree: float, *, tol: float = 1e-6
) -> None:
    r"""Scaling all gradients scales the update by a known power: :math:`A(sJ) = s^k A(J)`.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        jacobian: the gradients ``[m, d]``.
        factor: :math:`s > 0`.
        degree: :math:`k`.
        tol: the relative tolerance.
    """
    expected = aggregator(jacobian).double() * factor**degree
    found = aggregator(jacobian * factor)
    _close(found, expected, expected.abs().max(), tol, f"A({factor:g} J) against {factor:g}^{degree:g} A(J)")


def assert_invariant_to_rotation(
    aggregator: AggregatorLike, jacobian: Tensor, rotation: Tensor, *, tol: float = 1e-6
) -> None:
    r"""An orthogonal change of parameters goes through: :math:`A(JQ) = A(J)Q`.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        jacobian: the gradients ``[m, d]``.
        rotation: an orthogonal matrix :math:`Q`, ``[d, d]``.
        tol: the relative tolerance.
    """
    expected = aggregator(jacobian) @ rotation.to(jacobian)
    found = aggregator(jacobian @ rotation.to(jacobian))
    size = max(float(expected.double().norm()), tol * float(jacobian.double().norm(dim=1).max()))
    _close(found, expected, size, tol, "A(JQ) against A(J)Q")


def assert_in_simplex(weights: Tensor, *, tol: float = 1e-9) -> None:
    """Weights are at least zero and sum to one."""
    assert float(weights.min()) >= -tol, f"negative weight in {weights.tolist()}"
    assert abs(float(weights.sum()) - 1.0) <= tol, f"weights sum to {float(weights.sum())!r}"


def assert_in_cone(weights: Tensor, *, tol: float = 0.0) -> None:
    """Weights are at least zero, relative to the largest."""
    assert float(weights.min()) >= -tol * float(weights.abs().max()), f"negative weight in {weights.tolist()}"


def assert_equal_rows_give_their_direction(aggregator: AggregatorLike, row: Tensor, n_tasks: int) -> None:
    """If all tasks agree, the update points their way.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        row: the gradient that all tasks have, ``[d]``.
        n_tasks: how many tasks.
    """
    update = aggregator(row.expand(n_tasks, -1).contiguous()).double()
    direction = row.double() / row.double().norm()
    cosine = float(update @ direction) / float(update.norm())
    limit = tolerance(row.dtype)
    assert cosine >= 1.0 - limit, f"cosine with the common gradient: {cosine!r}"


def assert_zero_at_stationary(aggregator: AggregatorLike, jacobian: Tensor, *, tol: float | None = None) -> None:
    """At a Pareto-stationary point, where some convex combination of the rows vanishes, the update is zero.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        jacobian: the gradients ``[m, d]``, of which such a combination is zero.
        tol: the relative tolerance; ``None`` for that of the dtype, see ``tolerance``.
    """
    update = aggregator(jacobian)
    size = float(jacobian.double().norm(dim=1).max())
    limit = tolerance(jacobian.dtype) if tol is None else tol
    assert float(update.double().norm()) <= limit * size, (
        f"update of norm {float(update.double().norm()):.3e} at {size:.3e}"
    )


def assert_linear_under_scaling(
    aggregator: AggregatorLike, jacobian: Tensor, scales: Tensor, *, tol: float = 1e-6
) -> None:
    r"""Linear in the tasks' scales: :math:`A(\mathrm{diag}(c) J)` is linear in :math:`c > 0`.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        jacobian: the gradients ``[m, d]``.
        scales: one positive number per task, ``[m]``.
        tol: the relative tolerance.
    """
    first, second = scales.to(jacobian).unsqueeze(1), torch.ones_like(scales).to(jacobian).unsqueeze(1)
    expected = aggregator(first * jacobian) + aggregator(second * jacobian)
    found = aggregator((first + second) * jacobian)
    _close(found, expected, expected.abs().max(), tol, "A((c1 + c2) J) against A(c1 J) + A(c2 J)")


def assert_same_in_float32(aggregator: AggregatorLike, jacobian: Tensor, *, tol: float | None = None) -> None:
    """float32 gradients give the update of the same numbers in float64.

    Args:
        aggregator: a function from a Jacobian ``[m, d]`` to an update ``[d]``.
        jacobian: the gradients ``[m, d]``.
        tol: the relative tolerance; ``None`` for that of the dtype, see ``tolerance``.
    """
    narrow = jacobian.to(torch.float32)
    expected = aggregator(narrow.to(torch.float64))
    found = aggregator(narrow)
    limit = tolerance(torch.float32) if tol is None else tol
    _close(found, expected, max(float(expected.norm()), 1e-300), limit, "float32 against float64")
