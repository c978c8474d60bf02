"""Parameters that a forward pass writes into, which a search makes many of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem

__all__ = ["Renormed", "writing_refused"]


class Renormed:
    """The weights of embeddings with ``max_norm``, whose forward pass shortens the rows that it uses.

    That pass is the same function before and after, so that its value does not change within a search; but rows that
    only a probe batch has would be shortened by a search that moves nothing.

    Args:
        model: the model; its present weights are remembered.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = [(weight, weight.detach().clone()) for weight in _renormed(model)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back, where they have changed."""
        for weight, value in self._weights:
            if not torch.equal(weight, value):
                weight.copy_(value)


def _renormed(model: nn.Module) -> list[Tensor]:
    layers = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None]
    return list({id(layer.weight): layer.weight for layer in layers}.values())


@contextmanager
def writing_refused(problem: Problem) -> Iterator[None]:
    """Make sure that no evaluation inside the block writes into a parameter, seen by torch's count of such writes.

    A search evaluates dozens of times and leaves buffers as they were, but not parameters that are used as such.

    Raises:
        InvalidInputError: naming the parameters.
    """
    # Flattening the weights of a recurrent layer for cuDNN counts as a write and changes no value.
    known = {id(weight) for weight in _renormed(problem.model)}
    held = [
        (f"{path}.{name}" if path else name, parameter, parameter._version)
        for path, module in problem.listing.modules
        if not isinstance(module, nn.RNNBase)
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) not in known and not parameter.is_inference()
    ]
    yield
    written = [name for name, parameter, version in held if parameter._version != version]
    if written:
        raise InvalidInputError(
            "`losses` must not write into parameters to be evaluated by a search, which leaves only buffers as they "
            f"were, got a forward pass that writes into {', '.join(written[:4])}. Keep it as a buffer, or write after "
            "the step."
        )
