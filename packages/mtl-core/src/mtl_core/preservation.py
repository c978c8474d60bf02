"""Evaluating a model, and leaving no trace of it: buffers and random state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_core.listing import Listing, modules_of

__all__ = ["Contents", "RandomState", "Trace", "preserved"]


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


class Contents:
    """What dictionaries of tensors hold, as of modules' buffers: the tensors, their values, and which names there are.

    Args:
        owners: the dictionaries.
    """

    def __init__(self, owners: Iterable[MutableMapping[str, Any]]) -> None:
        self._owners = list(owners)
        self._before = [dict(owner.items()) if owner else None for owner in self._owners]
        held = {
            id(tensor): tensor for owner in self._before if owner for tensor in owner.values() if tensor is not None
        }
        self._values = [(tensor, tensor.detach().clone()) for tensor in held.values()]

    @torch.no_grad()
    def restore(self, *, overwrite: bool = False) -> None:
        """Put everything back, bit for bit and as the same tensors; what came in since is taken out.

        Args:
            overwrite: write to all of them, which saves looking which have changed.
        """
        for tensor, value in self._values:
            if _is_expanded(tensor):
                continue  # torch writes to no such tensor, so that nothing can have changed it
            # Sparse ones are not compared: torch cannot.
            if overwrite or tensor.layout != torch.strided or not torch.equal(tensor, value):
                tensor.copy_(value)
        # Another tensor may have been put in a tensor's place, or something in an empty one.
        self._put_back(self._before)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For a while copies of the values in the tensors' places."""
        now = [dict(owner.items()) if owner else None for owner in self._owners]
        copies = {id(tensor): value.clone() for tensor, value in self._values}
        self._put_back(
            [
                before and {name: tensor if tensor is None else copies[id(tensor)] for name, tensor in before.items()}
                for before in self._before
            ]
        )
        try:
            yield
        finally:
            self._put_back(now)

    def _put_back(self, contents: Sequence[Mapping[str, Tensor | None] | None]) -> None:
        for owner, content in zip(self._owners, contents, strict=True):
            if not owner and not content:
                continue
            wanted = content or {}
            # By items, which the parts of scripted modules have too; they go through pairs otherwise.
            found = dict(owner.items())
            for name in found.keys() - wanted.keys():
                del owner[name]
            for name, tensor in wanted.items():
                if name not in found or found[name] is not tensor:
                    owner[name] = tensor


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several entries are one number in memory."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return False
    return any(step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True))


class Trace:
    """What a forward pass leaves behind besides its result: the model's buffers and torch's random state.

    Args:
        model: the model whose present state is remembered.
        listing: its modules, where they are known already.
    """

    def __init__(self, model: nn.Module, listing: Listing | None = None) -> None:
        self._model = model
        modules = modules_of(model) if listing is None else listing.modules
        self._buffers = Contents(module._buffers for _, module in modules)
        self._random = RandomState(model)

    def restore(self, *, overwrite: bool = False) -> None:
        """Put everything back, bit for bit; buffers stay the same tensors.

        Args:
            overwrite: write to all of them, which saves looking which have changed (and waiting for the device), but
                spoils graphs that hold on to one.
        """
        try:
            self._buffers.restore(overwrite=overwrite)
        finally:
            self._random.restore()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For a while copies of everything in its place; then the present buffers and random state again."""
        random = RandomState(self._model)
        with self._buffers.lent():
            self._random.restore()
            try:
                yield
            finally:
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
