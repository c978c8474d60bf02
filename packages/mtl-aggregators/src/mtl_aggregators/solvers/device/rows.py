"""Unit rows, and which Gramians are solved where they lie."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtl_aggregators.solvers.rows import RESOLUTION

__all__ = ["Backend", "Rows", "as_known", "lifted", "solves_on_device", "unit_rows"]

Backend = Literal["auto", "host", "device"]
"""Where weights are computed: ``auto`` is ``device`` for what has a closed form and lies on an accelerator."""

CLOSED = 2
"""Number of tasks up to which some problems have a closed form."""


def solves_on_device(backend: Backend, gramian: Tensor, *, closed: bool = True) -> bool:
    """Whether a Gramian's problem is solved by the functions of this package.

    Iterating on an accelerator takes a thousand launches and more, which is longer than one small copy to the host and
    a solve there; so ``auto`` leaves there what has a closed form only.

    Args:
        backend: the setting.
        gramian: ``[..., m, m]``.
        closed: whether there is a closed form for two tasks.
    """
    if backend == "auto":
        # MPS has no float64.
        return closed and gramian.shape[-1] <= CLOSED and gramian.device.type not in ("cpu", "mps")
    return backend == "device"


class Rows(NamedTuple):
    """A Gramian taken apart into cosines and norms; a zero row is a unit gradient at right angles to all others.

    Attributes:
        cosines: ``[..., m, m]``, unit diagonal.
        norms: ``[..., m]``, relative to ``scale``: the largest is 1. 1 for a zero row.
        scale: ``[..., 1]``, the largest gradient norm; 1 if there is none.
        active: ``[..., m]``, boolean: not a zero row.
    """

    cosines: Tensor
    norms: Tensor
    scale: Tensor
    active: Tensor


def unit_rows(gramian: Tensor) -> Rows:
    """Scale the rows of a Gramian ``[..., m, m]`` to unit length."""
    wide = gramian.to(torch.float64)
    squares = wide.diagonal(dim1=-2, dim2=-1)
    # NaN counts as active, so that a Gramian that is not finite gives weights that are not.
    active = ~(squares <= 0.0)
    largest = squares.amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0.0, largest, 1.0).sqrt()
    norms = torch.where(active, squares, scale.square()).sqrt()
    cosines = wide / norms.unsqueeze(-1) / norms.unsqueeze(-2)
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    eye = torch.eye(wide.shape[-1], dtype=torch.bool, device=wide.device)
    cosines = torch.where(both, cosines, 0.0).masked_fill(eye, 1.0)
    return Rows(cosines, norms / scale, scale, active)


def as_known(gramian: Tensor) -> Tensor:
    """A Gramian ``[..., m, m]`` in float64, positive semi-definite to the rounding of its own dtype.

    On the host the eigenvalues that rounding explains are set to zero (``mtl_aggregators.solvers.rounding``). An
    eigen-decomposition waits for the device, so here all entries off the diagonal are shortened by the rounding, which
    lifts every eigenvalue of the cosines by as much; without it, projections onto the dual cone ran off to 1e150.
    """
    wide = gramian.to(torch.float64)
    if gramian.dtype == torch.float64:
        return wide
    size = gramian.shape[-1]
    short = size * torch.finfo(gramian.dtype).eps
    diagonal = torch.diag_embed(wide.diagonal(dim1=-2, dim2=-1))
    # At most by half, for bfloat16, whose rounding times the number of tasks may pass 1.
    return torch.lerp(0.5 * (wide + wide.mT), diagonal, min(0.5, short))


def lifted(cosines: Tensor) -> Tensor:
    """The cosines plus their own rounding on the diagonal, as ``mtl_aggregators.solvers.rows.factor`` has it."""
    size = cosines.shape[-1]
    return cosines + RESOLUTION * size * torch.eye(size, dtype=cosines.dtype, device=cosines.device)
