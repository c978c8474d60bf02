"""How matrix products and convolutions in float32 are computed on a GPU, for the length of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mtl_benchmarks.protocol.training import Precision

__all__ = ["arithmetic"]

_cudnn: Any = torch.backends.cudnn  # its parts for single operators are not annotated


@contextmanager
def arithmetic(precision: Precision, *, device: str) -> Iterator[None]:
    """Use TensorFloat-32 where ``precision`` says so and nowhere else; afterwards all is as it was.

    torch computes convolutions in TensorFloat-32 unless it is told otherwise, so that ``"float32"`` has to say so. On a
    CPU there is nothing to set.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting
