"""Losses whose gradients can be differentiated once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor, nn

from mtl_core.extension import plain_kernels, refuse_once_differentiable, twice_or_told
from mtl_teleport.batch_norm import lean_batch_norm
from mtl_teleport.convolution import lean_convolutions
from mtl_teleport.rectifier import lean_rectifiers

__all__ = ["check_functions", "told_what_to_do", "twice_differentiable"]


@contextmanager
def twice_differentiable(
    model: nn.Module, around: Callable[[], AbstractContextManager[None]] | None = None
) -> Iterator[None]:
    """Evaluate a model by operations that can be differentiated twice, where torch has several to choose from.

    Batch norm, convolutions and rectifiers have second derivatives of this package, which need less memory.

    Args:
        model: the model.
        around: what else an evaluation runs in.
    """
    with ExitStack() as stack:
        if around is not None:
            stack.enter_context(around())
        stack.enter_context(plain_kernels(model))
        for lean in (lean_batch_norm, lean_convolutions, lean_rectifiers):
            stack.enter_context(lean(model))
        yield


def check_functions(loss: Tensor) -> None:
    """Make sure that no hand-written function under a loss ends the graph of its own derivative.

    Raises:
        InvalidInputError: naming the function.
    """
    refuse_once_differentiable(loss, "sharpness='exact'", "Use sharpness='ascent', which differentiates once.")


def told_what_to_do(setting: str) -> AbstractContextManager[None]:
    """Say what to do instead where an operation cannot be differentiated twice.

    Args:
        setting: what asks for it, as the user would write it.

    Raises:
        InvalidInputError: from the error that torch raised.
    """
    return twice_or_told(setting, "Use sharpness='ascent' and conflict_weight=0, which differentiate once.")
