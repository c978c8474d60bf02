"""Looking at a model without leaving a trace: training flags, buffers and random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Trace", "isolated"]


class Trace:
    """What a forward pass leaves behind besides its result: the model's buffers and torch's random state.

    Args:
        model: the model whose present state is remembered.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = [
            (module._buffers, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        devices = {p.device for p in model.parameters()} | {b.device for _, _, b, _ in self._buffers}
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
        self._cpu = torch.get_rng_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, bit for bit; buffers stay the same tensors."""
        for owner, name, buffer, value in self._buffers:
            buffer.copy_(value)
            owner[name] = buffer
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; flags, buffers and torch's random state are then as before.

    Args:
        model: any module; every submodule gets its own flag back.

    Example:
        >>> import torch
        >>> layer = torch.nn.Dropout()
        >>> with isolated(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    flags = [(module, module.training) for module in model.modules()]
    trace = Trace(model)
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        trace.restore()
