"""Checks of the losses that a method is given, and of products of two Jacobians."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_core import InvalidInputError, NonFiniteLossError, checks
from mtl_core.extension import called_tasks

__all__ = [
    "check_losses",
    "check_losses_beside",
    "check_past_losses",
    "cross_gramian",
    "refuse_not_finite",
]


def cross_gramian(value: Tensor) -> Tensor:
    """The product of two Jacobians ``[m, m]``, float64; it need not be symmetric.

    Raises:
        InvalidJacobianError: it is not a finite real floating square matrix with a row.
    """
    return checks.square("cross", value).detach().to(torch.float64)


def check_losses(losses: object, present: object, tasks: Sequence[str] | None) -> None:
    """Check the losses ``[m]`` that a method is called on.

    On the CPU they are read; on an accelerator that would mean waiting for it, so there NaN is passed on, as by
    ``loss.backward()``. ``mtl_core.step`` looks at them wherever they are.

    Args:
        losses: what is to be a real floating vector with an entry.
        present: ``None``, or what is to be a boolean ``[m]``; an absent task's loss may be anything.
        tasks: the tasks' names, for messages.

    Raises:
        InvalidInputError: one of the two has the wrong type, shape or dtype, or ``tasks`` another length.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    vector = _vector(losses)
    if tasks is not None and len(tasks) != len(vector):
        raise InvalidInputError(f"`losses` must hold one loss per task of {tuple(tasks)}, got {len(vector)}.")
    known: Tensor | None = None
    if present is not None:
        if not isinstance(present, Tensor) or present.dtype != torch.bool or present.shape != vector.shape:
            found = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, Tensor) else type(present).__name__
            raise InvalidInputError(f"`present` must be a boolean tensor of shape [{len(vector)}], got {found}.")
        known = present
    if vector.device.type == "cpu" and not math.isfinite(vector.detach().sum().item()):
        refuse_not_finite(vector, known, tasks)


def check_past_losses(losses: object) -> None:
    """Check the losses ``[m]`` of a step that is over: NaN is an absent task, infinity is refused (on the CPU).

    Raises:
        InvalidInputError: they are no real floating vector with an entry.
        NonFiniteLossError: a loss is infinite.
    """
    vector = _vector(losses)
    if vector.device.type == "cpu" and not math.isfinite(vector.detach().sum().item()):
        refuse_not_finite(vector, ~vector.isnan(), None)


def check_losses_beside(losses: object, gradients: Tensor) -> Tensor:
    """Check the losses ``[m]`` that are given beside a Jacobian or Gramian with ``m`` rows.

    Returns:
        the losses; NaN only for tasks whose row is zero, as for those that are absent.

    Raises:
        InvalidInputError: they are no real floating vector with one entry per row.
        NonFiniteLossError: a loss is infinite, or NaN where the row is not zero.
    """
    vector = _vector(losses)
    if len(vector) != len(gradients):
        raise InvalidInputError(f"`losses` must hold one loss per row, {len(gradients)}, got {len(vector)}.")
    if not math.isfinite(vector.detach().sum().item()):
        # Absent tasks have NaN for a loss and a row of zeros; NaN beside a gradient is a broken loss.
        active = (gradients.detach() != 0.0).any(dim=1).to(vector.device)
        refuse_not_finite(vector, active | ~vector.isnan(), None)
    return vector


def refuse_not_finite(losses: Tensor, present: Tensor | None, tasks: Sequence[str] | None) -> None:
    """Say which losses ``[m]`` of the tasks present are not finite, if any is not.

    Raises:
        NonFiniteLossError: with the names of these tasks.
    """
    bad = ~torch.isfinite(losses.detach())
    if present is not None:
        bad &= present.to(bad.device)
    places = bad.nonzero().flatten().tolist()
    if not places:
        return
    called = tasks or called_tasks(len(losses))
    names = [called[i] for i in places]
    found = losses.detach()[places].tolist()
    listed = ", ".join(f"{name}: {value}" for name, value in zip(names, found, strict=True))
    raise NonFiniteLossError(
        f"`losses` must be finite, got {listed}. Look at this batch's targets and the learning rate.", tasks=names
    )


def _vector(losses: object) -> Tensor:
    if not isinstance(losses, Tensor):
        raise InvalidInputError(f"`losses` must be a torch.Tensor of shape [m], got {type(losses).__name__}.")
    if losses.ndim != 1 or not len(losses):
        raise InvalidInputError(f"`losses` must have shape [m] with m >= 1, got {tuple(losses.shape)}.")
    if not losses.is_floating_point():
        raise InvalidInputError(f"`losses` must be of a real floating dtype, got {losses.dtype}. Use .float().")
    return losses
