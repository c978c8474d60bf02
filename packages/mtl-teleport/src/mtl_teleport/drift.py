r"""How far losses have moved from those that are to be held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mtl_core import checks

__all__ = ["Reference", "drift_scale", "references", "relative_drift"]

Reference = Literal["batch", "loader"]
"""Whether a batch's losses are held at their own earlier values or at the mean over all probe batches."""


def references(own: Sequence[Tensor], *, kind: Reference = "batch") -> tuple[Tensor, ...]:
    r"""The losses :math:`L_i^*` to hold, for each batch; NaN where a task is absent.

    Args:
        own: each probe batch's losses before the search, ``[m]``, NaN where a task is absent.
        kind: ``"batch"``: each batch's own losses (exact invariance). ``"loader"``: for every batch the mean over
            all of them.

    Returns:
        one tensor ``[m]`` per batch.

    Raises:
        InvalidParameterError: ``kind`` is neither.

    Example:
        >>> import torch
        >>> references([torch.tensor([1.0, 4.0]), torch.tensor([3.0, float("nan")])], kind="loader")
        (tensor([2., 4.]), tensor([2., nan]))
    """
    checks.one_of("kind", kind, get_args(Reference))
    if kind == "batch":
        return tuple(own)
    mean = torch.stack(tuple(own)).nanmean(dim=0)
    # A task stays absent where it was.
    return tuple(torch.where(losses.isnan(), losses, mean) for losses in own)


def drift_scale(reference: Tensor) -> Tensor:
    r"""The size that a loss's drift is measured against, ``[m]``.

    .. math:: \max(|L_i^*|,\; 10^{-3}\,\mathrm{mean}_j |L_j^*|)

    The floor keeps one loss that is passing through zero from deciding everything.

    Returns:
        float64; 1 where all losses are zero.
    """
    # In double precision, and relative to the largest: the mean of losses of any size neither overflows nor vanishes.
    # Either would make one of any drift look small.
    size = reference.to(torch.float64).abs()
    largest = size.nan_to_num(nan=0.0, posinf=math.inf).max()
    floor = largest * ((size / largest).nanmean() * 1e-3)
    # Where the losses themselves are among the smallest numbers there are, a thousandth of them is none.
    return torch.maximum(size, torch.where(largest > 0, floor.clamp(min=math.ulp(0.0)), torch.ones_like(floor)))


def relative_drift(losses: Tensor, reference: Tensor) -> Tensor:
    r"""Mean over the present tasks of :math:`|L_i - L_i^*|` against ``drift_scale``; a scalar, float64.

    Args:
        losses: ``[m]``, NaN where a task is absent.
        reference: ``[m]``, NaN where a task is absent.
    """
    present = ~reference.isnan()
    change = losses.to(torch.float64) - reference.to(torch.float64)
    return (change.abs() / drift_scale(reference))[present].mean()
