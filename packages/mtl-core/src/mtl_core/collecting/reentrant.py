"""Reentrant checkpoints, whose backward passes cannot be asked for the gradients by some parameters."""

from __future__ import annotations

from mtl_core.collecting.graph import Outputs, made_by
from mtl_core.errors import InvalidInputError

__all__ = ["is_reentrant", "refuse_reentrant"]


def is_reentrant(outputs: Outputs) -> bool:
    """Whether activations under these losses are recomputed by ``checkpoint(..., use_reentrant=True)``."""
    return made_by(outputs, "CheckpointFunctionBackward")


def refuse_reentrant(outputs: Outputs, error: Exception | None = None) -> None:
    """Say what to do about checkpoints that cannot be differentiated task by task, if it is they.

    The graph ends at such a checkpoint: by parameters that are used inside alone there is no gradient. Where something
    below it has one torch says so; where nothing has, it passes over the checkpoint, and the parameters would stay as
    they are without a word. A walk over the graph takes as long as a small model's backward pass: it is for where
    something is amiss, an error or a parameter without a gradient of any task.

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
