"""Evaluating a model, and leaving no trace of it: buffers and random state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtl_core.listing import modules_of

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
    """The tensors that modules hold in some of their dictionaries, such as their buffers: which, and with what values.

    Args:
        owners: the dictionaries.
    """

    def __init__(self, owners: Iterable[MutableMapping[str, Any]]) -> None:
        # By `items`, which the dictionaries of scripted modules have too. Empty ones are remembered as well: a forward
        # pass may register something there.
        self._before: list[tuple[MutableMapping[str, Any], Mapping[str, Tensor | None]]] = [
            (owner, dict(owner.items()) if owner else _NOTHING) for owner in owners
        ]
        held = {id(t): t for _, before in self._before if before for t in before.values() if t is not None}
        self._values = [(tensor, tensor.detach().clone()) for tensor in held.values()]

    @torch.no_grad()
    def restore(self, *, overwrite: bool = False) -> None:
        """Put everything back, bit for bit and as the same tensors; what was registered since goes.

        Args:
            overwrite: write to all of them, without looking which have changed.
        """
        for tensor, value in self._values:
            if overwrite or not _is_equal(tensor, value):
                target, source = _in_memory(tensor, value)
                try:
                    target.copy_(source)
                except RuntimeError:
                    # Resized in place, or compressed with another number of entries: torch does not write to those.
                    tensor.data = value.clone()
        for owner, before in self._before:
            _put_back(owner, before)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For a while copies of the values in the tensors' places; then what is there now."""
        now = [(owner, dict(owner.items())) for owner, _ in self._before]
        copies = {id(tensor): value.clone() for tensor, value in self._values}
        for owner, before in self._before:
            _put_back(owner, {name: None if t is None else copies[id(t)] for name, t in before.items()})
        try:
            yield
        finally:
            for owner, present in now:
                _put_back(owner, present)


_NOTHING: Mapping[str, Tensor | None] = {}


def _put_back(owner: MutableMapping[str, Any], wanted: Mapping[str, Tensor | None]) -> None:
    if not owner and not wanted:
        return
    found = dict(owner.items())
    for name in found.keys() - wanted.keys():
        del owner[name]
    for name, tensor in wanted.items():
        if name not in found or found[name] is not tensor:
            owner[name] = tensor


def _is_equal(tensor: Tensor, value: Tensor) -> bool:
    """Whether two tensors of one layout are equal; torch itself compares strided ones only."""
    if tensor.layout == torch.strided:
        return torch.equal(tensor, value)
    return all(torch.equal(a, b) for a, b in zip(_parts(tensor), _parts(value), strict=True))


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The strided tensors that one of another layout is made of."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    nested: Any = tensor
    return nested.offsets(), nested.values()


def _in_memory(tensor: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What there is of both in the first one's memory: torch refuses to write to an expanded tensor."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor, value
    once = tuple([slice(1) if step == 0 else slice(None) for step in tensor.stride()])
    return tensor[once], value[once]


class Trace:
    """What a forward pass leaves behind besides its result: the model's buffers and torch's random state.

    Args:
        model: the model whose present state is remembered.
        modules: its modules by name, where they are known already.
    """

    def __init__(self, model: nn.Module, modules: Iterable[tuple[str, nn.Module]] | None = None) -> None:
        self._model = model
        found = modules_of(model) if modules is None else modules
        self._buffers = Contents([module._buffers for _, module in found])
        self._random = RandomState(model)

    def restore(self, *, overwrite: bool = False) -> None:
        """Put everything back, bit for bit; buffers stay the same tensors, and new ones go.

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
