"""Checks of hyper-parameters that only weighting methods have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_core import InvalidInputError, InvalidParameterError

__all__ = ["match_tasks", "one_per_task", "same_columns", "same_tasks", "weight_vector"]


def one_per_task(name: str, values: float | Sequence[float] | Tensor) -> Tensor:
    """A number, or one per task, as float64 without dimensions or of shape ``[m]``.

    Raises:
        InvalidParameterError: it is neither, or not finite.
    """
    vector = _numbers(name, values, "a number or one per task")
    if vector.ndim > 1 or not vector.numel() or not bool(torch.isfinite(vector).all()):
        raise InvalidParameterError(f"`{name}` must be a finite number or one per task, got {vector.tolist()}.")
    return vector.clone()


def weight_vector(name: str, values: Sequence[float] | Tensor) -> Tensor:
    """Fixed weights of the tasks as float64 ``[m]``.

    Raises:
        InvalidParameterError: they are not a non-empty vector of finite non-negative numbers, of which one is
            positive.
    """
    vector = _numbers(name, values, "a sequence of numbers")
    if vector.ndim != 1 or not len(vector):
        raise InvalidParameterError(
            f"`{name}` must hold one number per task, shape [m], got shape {tuple(vector.shape)}."
        )
    # Of the sum as well: weights that only together leave the range are divided by it, or summed.
    if not math.isfinite(float(vector.sum())) or bool((vector < 0).any()) or not bool((vector > 0).any()):
        raise InvalidParameterError(
            f"`{name}` must be finite, as must their sum, and non-negative with a positive entry, got "
            f"{vector.tolist()}."
        )
    return vector.clone()


def _numbers(name: str, values: object, must: str) -> Tensor:
    """What is given as real numbers, as float64 on the CPU."""
    known: Any = values
    try:
        # torch would drop the imaginary parts.
        if not (isinstance(known, (Tensor, np.ndarray)) and "complex" in str(known.dtype)):
            return torch.as_tensor(known, dtype=torch.float64, device="cpu").detach().to_dense()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise InvalidParameterError(f"`{name}` must be {must}, got {values!r}.")


def match_tasks(name: str, vector: Tensor, n_tasks: int) -> None:
    """Check that a vector set at construction has one entry per task.

    Raises:
        InvalidInputError: otherwise.
    """
    if len(vector) != n_tasks:
        raise InvalidInputError(
            f"`{name}` must hold one entry per task, got {len(vector)} for {n_tasks} tasks. "
            "Make a new method for another number of tasks."
        )


def same_columns(method: str, known: int, n_columns: int) -> None:
    """Check that a method that remembers something about each entry of the gradients still sees as many of them.

    Raises:
        InvalidInputError: otherwise.
    """
    if known != n_columns:
        raise InvalidInputError(
            f"{method} must see the same parameters in every step, gradients of {known} entries so far, got "
            f"{n_columns}. Call reset() when parameters are frozen or freed, and use a method for each model."
        )


def same_tasks(method: str, known: int, n_tasks: int) -> None:
    """Check that a method that remembers something about each task still sees as many of them.

    Raises:
        InvalidInputError: otherwise.
    """
    if known != n_tasks:
        raise InvalidInputError(
            f"{method} must see the same number of tasks in every step, {known} so far, got {n_tasks}. Give an absent "
            "task a zero row, or call reset() when the number of tasks changes."
        )
