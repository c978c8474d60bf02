"""Looking at a model without leaving a trace: training flags, buffers and random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Flags", "Mode", "Trace", "as_at", "isolated"]

Mode = Literal["eval", "train"]
"""Whether a model is looked at in evaluation mode, or in the one it is in."""


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
            if not torch.equal(buffer, value):  # a graph may hold on to one that has not changed
                buffer.copy_(value)
            owner[name] = buffer
        self._set_random_state(self._cpu, self._cuda)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For a while copies of everything in its place; then the present buffers and random state again."""
        now = [(owner, name, owner[name]) for owner, name, _, _ in self._buffers]
        cpu, cuda = torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in self._cuda}
        for owner, name, _, value in self._buffers:
            owner[name] = value.clone()
        self._set_random_state(self._cpu, self._cuda)
        try:
            yield
        finally:
            for owner, name, buffer in now:
                owner[name] = buffer
            self._set_random_state(cpu, cuda)

    @staticmethod
    def _set_random_state(cpu: Tensor, cuda: dict[torch.device, Tensor]) -> None:
        torch.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)


class Flags:
    """The training flag of every submodule.

    Args:
        model: the model whose present flags are remembered.
    """

    def __init__(self, model: nn.Module) -> None:
        self._flags = [(module, module.training) for module in model.modules()]

    def restore(self) -> None:
        """Give every submodule its own flag back."""
        for module, flag in self._flags:
            module.training = flag


@contextmanager
def as_at(model: nn.Module, flags: Flags, trace: Trace) -> Iterator[None]:
    """For a while, flags, buffers and random state as they were at an earlier moment; then as before.

    The buffers are copies meanwhile: none that a graph holds on to is written to.

    Args:
        model: the model.
        flags: taken at that moment.
        trace: taken at that moment.
    """
    now = Flags(model)
    flags.restore()
    try:
        with trace.lent():
            yield
    finally:
        now.restore()


@contextmanager
def isolated(model: nn.Module, *, mode: Mode = "eval") -> Iterator[Flags]:
    """Leave no trace in a model for a while: flags, buffers and torch's random state are then as before.

    Args:
        model: any module; every submodule gets its own flag back.
        mode: ``"eval"``: the model is in evaluation mode meanwhile; ``"train"``: it keeps its flags.

    Yields:
        the flags that it found.

    Example:
        >>> import torch
        >>> layer = torch.nn.Dropout()
        >>> with isolated(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    flags = Flags(model)
    trace = Trace(model)
    if mode == "eval":
        model.eval()
    try:
        yield flags
    finally:
        flags.restore()
        trace.restore()
