"""Losses of tasks, one at a time."""

from __future__ import annotations

from torch import Tensor

from mtl_core.errors import InvalidInputError, NonScalarLossError

__all__ = [
    "real_losses",
    "scalar_loss",
]


def scalar_loss(task: str, loss: object) -> Tensor:
    """Return a task's loss as a tensor without dimensions.

    Raises:
        NonScalarLossError: it is not a tensor of one element.
        InvalidInputError: it is complex, or a whole number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found, way_out = type(loss).__name__, "Return the tensor itself: .item() and float() drop its graph."
        if isinstance(loss, Tensor):
            found, way_out = f"shape {tuple(loss.shape)}", "Reduce it over the batch, e.g. with .mean()."
        raise NonScalarLossError(f"the loss of task {task!r} must be a scalar tensor, got {found}. {way_out}")
    real_losses(f"the loss of task {task!r}", loss)
    return loss.reshape(()) if loss.ndim else loss


def real_losses(what: str, losses: Tensor) -> None:
    """Make sure that losses are of a dtype that can be differentiated and compared.

    Raises:
        InvalidInputError: they are complex, whole numbers or truth values.
    """
    if losses.is_floating_point():
        return
    advice = "Take its .abs() or .real." if losses.is_complex() else "Such numbers have no gradient: count differently."
    raise InvalidInputError(f"{what} must be of a real floating dtype, got {losses.dtype}. {advice}")
