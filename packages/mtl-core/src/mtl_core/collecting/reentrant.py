"""Reentrant checkpoints, whose backward passes cannot be asked for the gradients by some parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from mtl_core.collecting.graph import Outputs, made_by
from mtl_core.errors import DetachedLossError, InvalidInputError

if TYPE_CHECKING:
    from mtl_core.collecting.task_gradients import TaskGradients

__all__ = ["is_reentrant", "refuse_reentrant", "refusing_reentrant"]

P = ParamSpec("P")


def is_reentrant(outputs: Outputs) -> bool:
    """Whether activations under these losses are recomputed by ``checkpoint(..., use_reentrant=True)``."""
    return made_by(outputs, "CheckpointFunctionBackward")


def refuse_reentrant(outputs: Outputs, error: Exception | None = None) -> None:
    """Say what to do about checkpoints that cannot be differentiated task by task, if it is they.

    The graph ends at such a checkpoint: by parameters that are used inside alone there is no gradient. Where something
    below it has one torch says so; where nothing has, it passes over the checkpoint, and the parameters would stay as
    they are without a word.

    Args:
        outputs: the losses.
        error: what differentiating them raised, if it did.

    Raises:
        InvalidInputError: from that error.
    """
    found = "use_reentrant=True" in str(error) if isinstance(error, RuntimeError) else is_reentrant(outputs)
    if found:
        raise InvalidInputError(
            "`model` must recompute activations without reentrance to be differentiated task by task, got "
            "torch.utils.checkpoint with use_reentrant=True, whose backward pass takes no inputs. Pass "
            "use_reentrant=False to checkpoint() or checkpoint_sequential()."
        ) from error


def refusing_reentrant(
    differentiate: Callable[Concatenate[Outputs, P], TaskGradients],
) -> Callable[Concatenate[Outputs, P], TaskGradients]:
    """A function that differentiates losses, and looks for reentrant checkpoints where something is amiss.

    A walk over the graph takes as long as a small model's backward pass. So it is made only where a parameter has no
    gradient of any task, as those inside of such a checkpoint.
    """

    @wraps(differentiate)
    def wrapped(outputs: Outputs, /, *args: P.args, **kwargs: P.kwargs) -> TaskGradients:
        try:
            found = differentiate(outputs, *args, **kwargs)
        except (RuntimeError, DetachedLossError) as error:
            refuse_reentrant(outputs, error)
            raise
        if not all(found.kept.touched):
            refuse_reentrant(outputs)
        return found

    return wrapped
