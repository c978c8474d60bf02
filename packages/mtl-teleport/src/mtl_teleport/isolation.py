"""Looking at a model without leaving a trace: training flags, buffers and random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from mtl_core.extension import Trace
from mtl_teleport.written import Renormed

__all__ = ["Flags", "Mode", "as_at", "isolated"]

Mode = Literal["eval", "train"]
"""Whether a model is looked at in evaluation mode, or in the one it is in."""


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
    renormed = Renormed(model)
    is_lost = False
    try:
        if mode == "eval":
            model.eval()
        yield flags
    except GeneratorExit:
        # An interrupt has kept the block from its end, and whoever frees the error closes it, at some later time within
        # another step. What it has left behind was put back long before.
        is_lost = True
        raise
    finally:
        if not is_lost:
            flags.restore()
            # Buffers are written only where they have changed: a graph of the step may hold on to them.
            trace.restore()
            renormed.restore()
