"""Losses whose gradients are differentiated once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtl_core.errors import InvalidInputError

__all__ = ["plain_kernels", "refuse_once_differentiable", "twice_or_told"]

_SIGNS = ("is not implemented", "differentiate twice", "not supported for CuDNN", "double backward")


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Evaluate a model by operations that can be differentiated twice, where torch has several to choose from.

    The fused kernels of attention and cuDNN's recurrent layers cannot; the same functions by plain operations can.

    Args:
        model: the model.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
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


def refuse_once_differentiable(loss: Tensor, setting: str, way_out: str) -> None:
    """Make sure that no hand-written function under a loss ends the graph of its own derivative.

    Torch hands out a derivative without a graph there, so that the second one would lack that part unnoticed.

    Args:
        loss: what is differentiated.
        setting: what asks for a second derivative, as the user would write it.
        way_out: what to do instead.

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
                    f"every operation of the model must be twice differentiable for {setting}, got "
                    f"{function.__name__}, whose backward is marked once_differentiable. {way_out}"
                )
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


@contextmanager
def twice_or_told(setting: str, way_out: str) -> Iterator[None]:
    """Say what to do instead where an operation cannot be differentiated twice.

    Args:
        setting: what asks for it, as the user would write it.
        way_out: what to do instead.

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
            f"every operation of the model must be twice differentiable for {setting}, got: {first} {way_out}"
        ) from error
