"""What a model is made of, by reference, so that a search that was broken off anywhere can be cleared away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.backends import cuda, cudnn

__all__ = ["Structure"]


class Structure:
    """Which parameters, modules and attributes a model has, the parameters' memory, flags and torch's switches.

    A search puts other tensors in the places of parameters, other layers in those of layers, and switches kernels and
    gradients; each of these is undone where it was done. An interrupt from the keyboard may come within the undoing
    itself, which is then left in the middle. Whoever is further out puts everything in its place again by this.

    Nothing is copied but references: values are restored by others.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [_Module(module) for module in model.modules()]
        self._parameters = [(parameter, parameter.requires_grad, parameter.data) for parameter in model.parameters()]
        self._switches = [partial(write, read()) for read, write in _SWITCHES]

    def restore(self) -> None:
        """Put all of it back."""
        for switch in self._switches:
            switch()
        for module in self._modules:
            module.restore()
        for parameter, flag, memory in self._parameters:
            if parameter.data_ptr() != memory.data_ptr():
                parameter.data = memory
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    (lambda: cudnn.enabled, partial(setattr, cudnn, "enabled")),
)
"""What says a switch's position, and what sets it."""


class _Module:
    """One module's part of it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._held: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = tuple(
            (owner, dict(owner)) for owner in (module._parameters, module._modules)
        )
        self._names = set(vars(module))
        self._plain: dict[str, Any] = {
            name: vars(module)[name] for name in ("training", "sparse") if name in vars(module)
        }

    def restore(self) -> None:
        for owner, before in self._held:
            if [*owner] != [*before] or any(owner[name] is not value for name, value in before.items()):
                owner.clear()
                owner.update(before)
        own = vars(self._module)
        # A layer's `forward` that stands in for that of its class, or what a library for adapters leaves on a model.
        for name in own.keys() - self._names:
            del own[name]
        own.update(self._plain)
