"""What a matrix must be to be let in, decided quickly; ``mtl_core.checks`` says what is wrong with others."""

from __future__ import annotations

import math

from torch import Tensor

from mtl_core import checks

__all__ = ["finite_jacobian", "is_gramian", "is_jacobian"]


def is_jacobian(value: object) -> bool:
    """Whether a value is a real floating matrix with a row; its entries are not looked at."""
    return isinstance(value, Tensor) and value.ndim == 2 and value.shape[0] > 0 and value.is_floating_point()


def is_gramian(value: object) -> bool:
    """Whether a value is a real floating square matrix with a row; its entries are not looked at."""
    return is_jacobian(value) and value.shape[0] == value.shape[1]  # type: ignore[attr-defined]


def finite_jacobian(value: Tensor) -> Tensor:
    """A checked Jacobian ``[m, d]`` without its graph.

    Raises:
        InvalidJacobianError: it is not a finite real floating matrix with a row.
    """
    if is_jacobian(value):
        known = value.detach()
        # Whatever is not finite makes the sum so. A sum may also overflow: then the rows are read one by one.
        if math.isfinite(known.sum().item()):
            return known
    return checks.jacobian(value).detach()
