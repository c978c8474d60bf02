"""Layers of a model that, for a while, compute their function by other operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Own", "computed_by"]

Own = Callable[..., Tensor | None]
"""A function of the arguments of the one that it stands in for; ``None`` where that one is to be called itself."""


@contextmanager
def computed_by(
    model: nn.Module, classes: tuple[type[nn.Module], ...], functions: Mapping[Callable[..., Any], Own]
) -> Iterator[None]:
    """For a while, a model's layers of some classes call other functions in place of torch's.

    Layers of a class of the user's, and those whose ``forward`` is replaced already, are left alone.

    Args:
        model: the model.
        classes: of its layers.
        functions: by the function of torch that such a layer calls, what is called in its place.
    """
    # A layer's own `forward` and no mode around the whole model: `torch.autograd.grad` suspends every mode, and what a
    # checkpoint recomputes in a backward pass was torch's function then, with another number of saved tensors.
    layers = [m for m in model.modules() if type(m) in classes and "forward" not in vars(m)]
    try:
        for layer in layers:
            # As an attribute of the instance, which hides the class's method and is deleted afterwards; hooks of the
            # layer still run around it.
            layer.forward = partial(_forward, layer, functions)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Module, functions: Mapping[Callable[..., Any], Own], x: Tensor) -> Tensor:
    with _Instead(functions):
        found: Tensor = type(layer).forward(layer, x)
    return found


class _Instead(TorchFunctionMode):
    """While active, each of some functions is the one that stands in for it where that can."""

    def __init__(self, functions: Mapping[Callable[..., Any], Own]) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or what stands in its place."""
        kwargs = kwargs or {}
        own = self._functions.get(func)
        # Within, the mode is suspended, so that a stand-in may call torch's own function.
        found = None if own is None else own(*args, **kwargs)
        return func(*args, **kwargs) if found is None else found
