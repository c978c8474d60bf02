"""Embeddings whose gradients are sparse, which a search needs whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["dense_embeddings"]


@contextmanager
def dense_embeddings(model: nn.Module) -> Iterator[None]:
    """For a while, ``Embedding`` and ``EmbeddingBag`` layers that ask for sparse gradients get whole ones.

    A search combines, projects and differentiates gradients of all shared parameters, and a sparse one cannot be
    differentiated again. The step itself, before and after, is left as it is.

    Args:
        model: the model.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    try:
        for layer in layers:
            layer.sparse = False
        yield
    finally:
        for layer in layers:
            layer.sparse = True
