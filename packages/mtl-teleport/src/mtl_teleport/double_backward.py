"""Losses whose gradients can be differentiated once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtl_core import InvalidInputError
from mtl_teleport.batch_norm import lean_batch_norm
from mtl_teleport.convolution import lean_convolutions
from mtl_teleport.rectifier import lean_rectifiers

__all__ = ["check_functions", "told_what_to_do", "twice_differentiable"]

_SIGNS = ("is not implemented", "differentiate twice", "not supported for CuDNN", "double backward")


@contextmanager
def twice_differentiable(
    model: nn.Module, around: Callable[[], AbstractContextManager[None]] | None = None
) -> Iterator[None]:
    """Evaluate a model by operations that can be differentiated twice, where torch has several to choose from.

    The fused kernels of attention and cuDNN's recurrent layers cannot; the same functions by plain operations can.
    Batch norm, convolutions and rectifiers have second derivatives of this package, which need less memory.

    Args:
        model: the model.
        around: what else an evaluation runs in.
    """
    with ExitStack() as stack:
        if around is not None:
            stack.enter_context(around())
        # The fused kernels have no second derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for lean in (lean_batch_norm, lean_convolutions, lean_rectifiers):
            stack.enter_context(lean(model))
        # Only then: convolutions are slower without cuDNN.
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            cudnn = torch.backends.cudnn
            stack.enter_context(
                cudnn.flags(
                    enabled=False,
                    benchmark=cudnn.benchmark,
                    deterministic=cudnn.deterministic,
                    allow_tf32=cudnn.allow_tf32,
                )
            )
        yield


def check_functions(loss: Tensor) -> None:
    """Make sure that no hand-written function under a loss ends the graph of its own derivative.

    Torch hands out a derivative without a graph there, so that the second one would lack that part unnoticed.

    Raises:
        InvalidInputError: naming the function.
    """
    stack = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction):
            function = getattr(node, "_forward_cls", None)
            # What once_differentiable returns is wrapped by functools.wraps, a plain backward is not.
            if hasattr(getattr(function, "backward", None), "__wrapped__"):
                raise InvalidInputError(
                    "every operation of the model must be twice differentiable for sharpness='exact', got "
                    f"{function.__name__}, whose backward is marked once_differentiable. Use sharpness='ascent', which "
                    "differentiates once."
                )
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


@contextmanager
def told_what_to_do(setting: str) -> Iterator[None]:
    """Say what to do instead where an operation cannot be differentiated twice.

    Args:
        setting: what asks for it, as the user would write it.

    Raises:
        InvalidInputError: from the error that torch raised.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        first = str(error).strip().splitlines()[0]
        raise InvalidInputError(
            f"every operation of the model must be twice differentiable for {setting}, got: {first} "
            "Use sharpness='ascent' and conflict_weight=0, which differentiate once."
        ) from error
