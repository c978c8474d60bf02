"""The state of every global random number generator, to set, save and give back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

__all__ = ["random_state", "seeded", "seeded_globally", "set_random_state"]


def random_state() -> dict[str, Any]:
    """State of the generators of Python, numpy and torch, as plain data and tensors."""
    # As plain numbers: a checkpoint is read with weights_only, which takes no numpy arrays.
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue from what :func:`random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def seeded(seed: int, *, threads: int) -> Iterator[None]:
    """Seed every generator and set torch's threads; afterwards both are as they were for the caller."""
    before, threads_before = random_state(), torch.get_num_threads()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # a run of an earlier version may have a larger one
    torch.manual_seed(seed)
    # Sums over threads are split by their number, and so rounded differently.
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        set_random_state(before)


@contextmanager
def seeded_globally(seed: int, *, keep: bool) -> Iterator[None]:
    """Let what draws from the generators of Python, numpy and torch's CPU draw the same here as anywhere.

    Args:
        seed: of 32 bits.
        keep: whether the generators are afterwards as they were before, which a process that only reads data can do
            without.
    """
    before = (random.getstate(), numpy.random.get_state(), torch.get_rng_state()) if keep else None
    random.seed(seed)
    numpy.random.seed(seed)
    # Not torch.manual_seed, which seeds GPUs too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            numpy.random.set_state(before[1])
            torch.set_rng_state(before[2])
