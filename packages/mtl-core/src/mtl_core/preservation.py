"""Evaluating a model, and leaving no trace of it: buffers and random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtl_core.listing import Listing

__all__ = ["RandomState", "Trace", "preserved"]


class RandomState:
    """Torch's random state on the CPU and on the accelerators that a model lies on, as it is now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda: dict[torch.device, Tensor] = {}
        # Asking for a device's state would start CUDA in a process that only has it.
        if torch.cuda.is_initialized():
            devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
            self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}

    def restore(self) -> None:
        """Put it back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


class Trace:
    """What a forward pass leaves behind besides its result: the model's buffers and torch's random state.

    Args:
        model: the model whose present state is remembered.
        listing: its buffers, where they are known already.
    """

    def __init__(self, model: nn.Module, listing: Listing | None = None) -> None:
        self._model = model
        places = Listing(model, {}).buffers if listing is None else listing.buffers
        self._buffers = [(owner, name, buffer, buffer.detach().clone()) for owner, name, buffer in places]
        self._random = RandomState(model)

    @torch.no_grad()
    def restore(self, *, overwrite: bool = False) -> None:
        """Put everything back, bit for bit; buffers stay the same tensors.

        Args:
            overwrite: write to all of them, which saves looking which have changed (and waiting for the device), but
                spoils graphs that hold on to one.
        """
        for owner, name, buffer, value in self._buffers:
            if overwrite or not torch.equal(buffer, value):
                buffer.copy_(value)
            # A forward pass may also have put another tensor in the buffer's place.
            owner[name] = buffer
        self._random.restore()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For a while copies of everything in its place; then the present buffers and random state again."""
        now = [(owner, name, owner[name]) for owner, name, _, _ in self._buffers]
        random = RandomState(self._model)
        for owner, name, _, value in self._buffers:
            owner[name] = value.clone()
        self._random.restore()
        try:
            yield
        finally:
            for owner, name, buffer in now:
                owner[name] = buffer
            random.restore()


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give back a model's buffers and torch's random state afterwards, bit for bit and as the same tensors.

    Args:
        model: any module. No graph that holds on to its buffers may be differentiated afterwards.

    Example:
        >>> layer = torch.nn.BatchNorm1d(2)
        >>> with preserved(layer):
        ...     _ = layer(torch.randn(4, 2))
        >>> int(layer.num_batches_tracked)
        0
    """
    trace = Trace(model)
    try:
        yield
    finally:
        trace.restore(overwrite=True)
