"""Mini-batches in an order that is a function of (seed, epoch), so that a run can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import numpy
import torch
from torch import Tensor

from mtl_core.checks import positive_int

__all__ = ["BatchSource", "Batches", "Probes", "Repeated"]

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class BatchSource(Protocol[B_co]):
    """Random access to the batches of any epoch."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def batch(self, epoch: int, index: int) -> B_co:
        """Batch ``index`` of ``epoch``, the same at every call."""
        ...


class Batches(Generic[B]):
    """Shuffled mini-batches with random access.

    The order of epoch e is a permutation drawn from a generator seeded by (seed, e), and batch k of epoch e
    gets a generator seeded by (seed, e, k) for its augmentation. So the position in the data is two whole
    numbers, nothing has to be replayed after a restart, and the order is independent of the training code.

    Args:
        fetch: makes a batch from sample numbers [b] and a generator for whatever it draws.
        n_samples: size of the training set, at least 1.
        batch_size: samples per batch; the last batch holds the rest.
        seed: seed of the order.

    Example:
        >>> batches = Batches(lambda rows, generator: rows.tolist(), 5, batch_size=2, seed=0)
        >>> len(batches), sorted(sum((batches.batch(0, k) for k in range(3)), []))
        (3, [0, 1, 2, 3, 4])
        >>> batches.batch(7, 1) == batches.batch(7, 1)
        True
    """

    def __init__(
        self, fetch: Callable[[Tensor, torch.Generator], B], n_samples: int, *, batch_size: int, seed: int
    ) -> None:
        self._fetch = fetch
        self._n_samples = positive_int("n_samples", n_samples)
        self._batch_size = positive_int("batch_size", batch_size)
        self._seed = seed
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return -(-self._n_samples // self._batch_size)

    def batch(self, epoch: int, index: int) -> B:
        """Batch ``index`` of ``epoch``, the same at every call."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, torch.randperm(self._n_samples, generator=_generator(self._seed, epoch)))
        rows = self._order[1][index * self._batch_size : (index + 1) * self._batch_size]
        return self._fetch(rows, _generator(self._seed, epoch, index + 1))


class Probes(Generic[B]):
    """The batches of an epoch that is never trained on; iterating again gives the same ones."""

    _EPOCH = 2**31

    def __init__(self, batches: BatchSource[B]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[B]:
        return (self._batches.batch(self._EPOCH, index) for index in range(len(self._batches)))


class Repeated(Generic[B]):
    """The same batch at every step: problems without data."""

    def __init__(self, batch: B, n_batches: int) -> None:
        self._batch = batch
        self._n_batches = positive_int("n_batches", n_batches)

    def __len__(self) -> int:
        return self._n_batches

    def batch(self, epoch: int, index: int) -> B:
        """The one batch."""
        return self._batch


def _generator(seed: int, epoch: int, index: int = 0) -> torch.Generator:
    # torch's CPU generator reads the low 32 bits of its seed only, so the three numbers are mixed into as many.
    state = numpy.random.SeedSequence([seed, epoch, index]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
