"""Recomputed activations, where the backward pass would read other parameters than the forward pass did."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

import torch
from torch.autograd.graph import disable_saved_tensors_hooks

from mtl_core.collecting.reentrant import is_reentrant
from mtl_core.errors import InvalidInputError
from mtl_core.task_losses import TaskLosses

__all__ = ["graph_is_dropped", "without_recomputation"]

_HOOKED = "tensors are saved with hooks while parameters are replaced"
_CHECKPOINTS = "torch.utils.checkpoint"


_dropped: ContextVar[bool] = ContextVar("_dropped", default=False)


@contextmanager
def graph_is_dropped() -> Iterator[None]:
    """Within it, graphs of losses are not kept: what the losses differentiate they differentiate by themselves."""
    token = _dropped.set(True)
    try:
        yield
    finally:
        _dropped.reset(token)


def without_recomputation(evaluate: Callable[[], TaskLosses]) -> TaskLosses:
    """Losses at parameters that are replaced for the forward pass alone, whose activations must therefore be saved.

    What is recomputed in the backward pass is recomputed with the model's own parameters, and the gradients are those
    at another point: seen with a cosine of .68 with the right ones, without a word of torch.

    Args:
        evaluate: the evaluation. Where its graph is not made or not kept, nothing is looked for.

    Raises:
        InvalidInputError: it recomputes, or has other hooks on saved tensors.
    """
    if not torch.is_grad_enabled() or _dropped.get():
        return evaluate()
    # Checkpoints without reentrance act by hooks on saved tensors, which torch can be told to refuse. The graph shows
    # them too, but a walk over what each node saved takes longer, and torch 2.9 does not tell whose hooks they are.
    try:
        with disable_saved_tensors_hooks(_HOOKED):
            found = evaluate()
    except RuntimeError as error:
        within = any(
            frame.f_globals.get("__name__") == _CHECKPOINTS for frame, _ in traceback.walk_tb(error.__traceback__)
        )
        if _HOOKED in str(error):
            _refuse(_CHECKPOINTS if within else "torch.autograd.graph.saved_tensors_hooks", error)
        # A transform of torch.func does not get that far: functions within the checkpoints have no rules for it.
        if within and any(sign in str(error) for sign in ("setup_context", "vmap support")):
            _refuse(_CHECKPOINTS, error)
        raise
    if is_reentrant(found.outputs):
        _refuse(_CHECKPOINTS, None)
    return found


def _refuse(what: str, error: RuntimeError | None) -> NoReturn:
    raise InvalidInputError(
        f"`losses` must save activations as they are to be evaluated at other parameters, got {what}, by which the "
        "backward pass would read the model's own. Switch it off for this evaluation, or leave the parameters in place "
        "until the backward pass is done: problem.losses(batch) within mtl_core.extension.placed(model, parameters); "
        "in place of collect_per_task(), collect() of one loss per task."
    ) from error
