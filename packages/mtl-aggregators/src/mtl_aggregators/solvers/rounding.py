"""Gramians that were rounded to less than double precision."""

from __future__ import annotations

import numpy as np
import torch

from mtl_aggregators.solvers.solution import Vector

__all__ = ["as_known"]

BEYOND = 64.0
"""A negative eigenvalue of more than this many times the rounding is no rounding: the matrix is left as it is."""


def as_known(gramian: Vector, dtype: torch.dtype) -> Vector:
    r"""The positive semi-definite matrix that a Gramian rounded to a narrow dtype stands for.

    Rounding a singular Gramian to float32 gives it eigenvalues of either sign around 1e-7 in the scale of unit rows.
    The solvers work to 1e-10 and better: without this, they refuse the negative ones or take the positive ones for
    independent gradients. The eigenvalues of the cosines that are no larger than their own rounding are set to zero.

    Args:
        gramian: ``[m, m]``, float64 copy of the narrow one, finite.
        dtype: that in which it was given, which says how far its entries are known.

    Returns:
        ``[m, m]``, symmetric with the same diagonal; ``gramian`` itself where all its eigenvalues are above the
        rounding. Rows whose squared norm has underflowed to zero become zero rows.

    Example:
        >>> rounded = np.array([[1.0, 1.0 + 1e-7], [1.0 + 1e-7, 1.0]])
        >>> as_known(rounded, torch.float32).round(12).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    squares = gramian.diagonal()
    kept = np.flatnonzero(squares > 0.0)
    if len(kept) < 2:
        return np.diag(np.where(squares > 0.0, squares, 0.0))
    norms = np.sqrt(squares[kept])
    cosines = gramian[np.ix_(kept, kept)] / norms / norms[:, None]
    cosines = 0.5 * (cosines + cosines.T)
    np.fill_diagonal(cosines, 1.0)
    info = torch.finfo(dtype)
    # Entries below the normal range are known to a fixed distance, not to a fixed number of digits.
    spacing = np.minimum(1.0, info.tiny * info.eps / norms * (1.0 / norms).sum())
    noise = len(kept) * info.eps + float(spacing.max())
    values, vectors = np.linalg.eigh(cosines)
    # Decided by the smallest alone, as the usual Gramian has full rank and is handed back as it is.
    if values[0] > noise or values[0] < -BEYOND * noise:
        return gramian
    # How far the smallest one is below zero shows how large the rounding is, where it is larger than that of entries.
    values[values <= max(noise, -2.0 * values[0])] = 0.0
    root = vectors * np.sqrt(values)
    lengths = np.sqrt(np.einsum("ij,ij->i", root, root))
    # A row has length 1 before; all of it lies in what was dropped only if it is noise altogether.
    root *= (norms / np.where(lengths > 0.0, lengths, 1.0))[:, None]
    found = np.zeros_like(gramian)
    found[np.ix_(kept, kept)] = root @ root.T
    return found
