"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.linalg.lapack import dgejsv, dpstrf, dsyevd
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.parameters import match_tasks, weight_vector
from mtl_aggregators.solvers import UnitRows, unit_rows
from mtl_aggregators.solvers.rows import ones
from mtl_aggregators.solvers.solution import Vector
from mtl_core import SolverError, checks

__all__ = ["AlignedMTL"]

ScaleMode = Literal["min", "median", "rmse"]

CUTOFF = 1e-9
"""Squared distance of a unit gradient from the span of the others below which it depends on them.

The cosines carry rounding errors of 1e-16; what is left of them beside such a distance is known to a millionth.
"""


class AlignedMTL(GramianMethod):
    r"""Independent component alignment: the gradients are replaced by the nearest orthogonal ones of equal length.

    .. math:: w = B\lambda, \qquad B = \sqrt{\sigma}\; V \Lambda^{-1/2} V^\top, \qquad G = V \Lambda V^\top

    on the numerical rank of :math:`G`, so that the linear system of the gradients has condition number 1.

    Args:
        preference: :math:`\lambda` ``[m]``, non-negative and not all zero; ``None`` for 1 each.
        scale_mode: :math:`\sigma` is the smallest (``"min"``), the median (``"median"``, the lower of two) or the mean
            (``"rmse"``) of the eigenvalues that count.

    Raises:
        InvalidParameterError: ``preference`` has a negative entry or is all zero, or ``scale_mode`` is none of the
            three.

    Note:
        The rank is decided on the cosines, so that a gradient that is short but independent counts, and one within
        3e-5 radians of the span of the others does not; where
        eigenvalues lie far apart, they are found by one-sided Jacobi rotations of the factor, which give small ones
        beside large ones to full relative accuracy. An eigen-decomposition of the Gramian does neither.

    References:
        Senushkin et al., *Independent Component Alignment for Multi-Task Learning*, CVPR 2023, algorithm 1; Drmač and
        Veselić, *New Fast and Accurate Jacobi SVD Algorithm*, SIAM J. Matrix Anal. Appl. 2008.

    Example:
        >>> import torch
        >>> AlignedMTL()(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([1., 1.])
    """

    def __init__(self, *, preference: Sequence[float] | Tensor | None = None, scale_mode: ScaleMode = "min") -> None:
        super().__init__()
        self.preference = None if preference is None else weight_vector("preference", preference)
        self.scale_mode = checks.one_of("scale_mode", scale_mode, ("min", "median", "rmse"))

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        laws: set[Law] = {"homogeneous", "orthogonal", "equal_rows"}
        if self.preference is None:
            laws |= {"permutation", "zero_rows"}
            scale = Scale("1", lambda m: 1.0)
        else:
            total = float(self.preference.sum())
            scale = Scale("Σλ/m", lambda m: total / m)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Senushkin et al., CVPR 2023",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m = len(gramian)
        if self.preference is None:
            preference: Vector = ones(m)
        else:
            match_tasks("preference", self.preference, m)
            preference = self.preference.numpy()
        rows = unit_rows(gramian)
        k = len(rows.norms)
        if k == 0:
            return preference.copy()
        sizes, basis = _singular(rows)
        rank = len(sizes)
        if self.scale_mode == "min":
            length = min(sizes.tolist())
        elif self.scale_mode == "median":
            length = float(np.sort(sizes)[(rank - 1) // 2])
        else:
            length = float(np.sqrt(np.mean(sizes**2)))
        wanted = preference if rows.kept is None else preference[rows.kept]
        return rows.expand(basis.dot(length / sizes * wanted.dot(basis)))


def _singular(rows: UnitRows) -> tuple[Vector, Vector]:
    """Singular values ``[r]`` of the gradients (largest norm 1) that count, and the left vectors ``[k, r]``."""
    k = len(rows.norms)
    scaled = rows.cosines * rows.norms
    scaled *= rows.norms[:, None]
    values, vectors, info = dsyevd(scaled.T, overwrite_a=1)
    # An eigen-decomposition is right to rounding of the largest eigenvalue. With 1e-7 of that as the smallest, eight
    # digits of every one are left, and all rows count.
    if info == 0 and values.item(0) > 1e-7 * values.item(-1):
        return np.sqrt(values), vectors
    # Pivoted, so that it stops at the first row that depends on those taken, whatever their order. LAPACK counts pivots
    # from 1.
    factor, pivots, rank, info = dpstrf(rows.cosines, tol=CUTOFF)
    if info < 0 or rank == 0:
        raise SolverError("the cosines could not be factored", residual=float("inf"), iterations=0)
    # Row i is task i's gradient: RRᵀ = G, and a singular value is the root of an eigenvalue.
    root = np.zeros((k, rank))
    root[pivots - 1] = np.triu(factor)[:rank].T
    root *= rows.norms[:, None]
    # joba=2, LAPACK's "F", is for rows that are scaled by arbitrary factors, here the norms; left vectors only. The
    # singular values come out multiplied by work[1] / work[0].
    sizes, left, _, work, _, info = dgejsv(root, joba=2, jobu=0, jobv=3)
    if info != 0:
        raise SolverError("the singular values were not found", residual=float("inf"), iterations=0)
    return sizes * (work[0] / work[1]), left[:, :rank]
