"""Whether training has led to numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mtl_benchmarks.engine.trainer import Trainer
from mtl_core.extension import is_sharded

__all__ = ["Watch"]


class Watch:
    """Looks for NaN and infinities in what a run would save.

    Looked at are the parameters and buffers of the model, the tensors of the optimiser's state, and the parameters
    that the method trains. What is infinite in the beginning, such as a mask, may stay so. All tensors are reduced
    together and read from the device once.

    Args:
        trainer: as it was made, before a step or a checkpoint.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._allowed = frozenset(_non_finite(_tensors(trainer)))

    def found(self) -> list[str]:
        """Names of what has become NaN or infinite, or nothing."""
        return _non_finite((name, tensor) for name, tensor in _tensors(self._trainer) if name not in self._allowed)

    def found_in(self, state: Mapping[str, Tensor]) -> list[str]:
        """The same of the model's state as it would be saved, which with several processes is the whole of it."""
        named = ((f"parameter `{name}`", value) for name, value in state.items() if isinstance(value, Tensor))
        return _non_finite(
            (name, value) for name, value in named if not {name, name.replace("parameter", "buffer", 1)} & self._allowed
        )


def _non_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    tensors = {
        name: _own_part(tensor.detach())
        for name, tensor in named
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel()
    }
    # The largest magnitude of all: NaN and infinities come through, and large finite values do not overflow.
    if not tensors or math.isfinite(float(nn.utils.get_total_norm(list(tensors.values()), math.inf))):
        return []
    # One by one only when something is wrong: each look waits for the device.
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]


def _own_part(tensor: Tensor) -> Tensor:
    """Of a sharded tensor what this process has; to ask for more, all processes would have to ask."""
    own: Tensor = tensor.to_local() if is_sharded([tensor]) else tensor  # type: ignore[attr-defined]
    return own


def _tensors(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    # By identity, as tensors hash: a parameter that is tied is named once, and the optimiser's state is keyed by it.
    owners: dict[Tensor, str] = {}
    for name, own in trainer.model.named_parameters():
        owners[own] = f"parameter `{name}`"
    if isinstance(trainer.method, nn.Module):
        for name, own in trainer.method.named_parameters():
            owners.setdefault(own, f"parameter `{name}` of {type(trainer.method).__name__}")
    yield from ((name, parameter) for parameter, name in owners.items())
    for name, buffer in trainer.model.named_buffers():
        yield f"buffer `{name}`", buffer
    for number, (parameter, state) in enumerate(trainer.optimizer.state.items()):
        for key, value in state.items():
            if isinstance(value, Tensor):
                yield f"the optimiser's `{key}` of {owners.get(parameter, f'parameter {number}')}", value
