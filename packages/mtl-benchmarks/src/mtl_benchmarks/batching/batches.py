"""Mini-batches in an order that is a function of (seed, epoch), so that a run can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import numpy
import torch
from torch import Tensor

from mtl_core import InvalidInputError
from mtl_core.checks import positive_int

__all__ = [
    "BatchSource",
    "Batches",
    "HasSizes",
    "OwnPart",
    "Part",
    "Parts",
    "Probes",
    "Repeated",
    "Share",
    "Table",
    "generator_of",
    "mixed_seed",
    "order_of",
    "part_of",
    "resident",
    "rows_of",
    "size_of",
    "weighted_rows",
]

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


@dataclass(frozen=True)
class Part:
    """One of several parts of something, such as a batch that several processes or micro-batches divide.

    Args:
        index: which, from 0.
        count: of how many.

    Example:
        >>> [Part(k, 3).bounds(7) for k in range(3)]
        [(0, 2), (2, 4), (4, 7)]
    """

    index: int = 0
    count: int = 1

    def bounds(self, n: int) -> tuple[int, int]:
        """Where this part of ``n`` things in a row begins and ends; parts differ by at most one thing."""
        # In whole numbers: the bounds of neighbours are the same expression, so that nothing is lost or there twice.
        return n * self.index // self.count, n * (self.index + 1) // self.count


@dataclass(frozen=True)
class Share(Generic[B]):
    r"""A part of a batch, with what its mean losses count for in the mean over equally many parts.

    Attributes:
        batch: the part.
        weight: its samples times the number of parts, over the samples of the whole batch, so that
            :math:`\tfrac1n \sum_p w_p L_p` is the mean over all samples. A part that would be empty repeats a sample
            of the batch and has weight 0.
    """

    batch: B
    weight: float


class BatchSource(Protocol[B_co]):
    """Random access to the batches of any epoch."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def batch(self, epoch: int, index: int) -> B_co:
        """Batch ``index`` of ``epoch``, the same at every call."""
        ...


@runtime_checkable
class Parts(Protocol):
    """What a batch source offers if its batches can be divided among processes and micro-batches."""

    def part(self, epoch: int, index: int, part: Part) -> Share[Any]:
        """A part of batch ``index`` of ``epoch``; all of them together are the samples of that batch."""
        ...


@runtime_checkable
class HasSizes(Protocol):
    """What a batch source offers that knows how many samples a batch has before it is made."""

    def size(self, index: int) -> int:
        """Samples in batch ``index``, in every epoch."""
        ...


def part_of(source: BatchSource[Any], epoch: int, index: int, part: Part) -> Share[Any]:
    """A part of a batch.

    Raises:
        InvalidInputError: the source cannot divide its batches.
    """
    if part.count == 1:
        return Share(source.batch(epoch, index), 1.0)
    if not isinstance(source, Parts):
        raise InvalidInputError(
            f"`batches` must have part(epoch, index, part) to be divided into {part.count} parts, got "
            f"{type(source).__name__}. Batches and LoadedBatches have it."
        )
    return source.part(epoch, index, part)


class OwnPart(Generic[B]):
    """The batches of a source, of each of which one process takes its part.

    Args:
        batches: the source.
        part: which part.
    """

    def __init__(self, batches: BatchSource[B], part: Part) -> None:
        self._batches = batches
        self._part = part

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, index: int) -> Share[B]:
        """The part of the batch."""
        return part_of(self._batches, epoch, index, self._part)


def weighted_rows(rows: Tensor, part: Part) -> tuple[Tensor, float]:
    """The sample numbers of a part and its weight; see :class:`Share`."""
    begin, end = part.bounds(len(rows))
    # An empty part still needs a forward pass: all processes make the same collective operations.
    return (rows[begin:end] if end > begin else rows[:1]), (end - begin) * part.count / len(rows)


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
        # From 1 on: (seed, epoch, 0) is the order's.
        return self._fetch(self._rows(epoch, index), generator_of(self._seed, epoch, index + 1))

    def size(self, index: int) -> int:
        """Samples in batch ``index``, in every epoch."""
        return size_of(self._n_samples, index, self._batch_size)

    def part(self, epoch: int, index: int, part: Part) -> Share[B]:
        """A part of that batch. What ``fetch`` draws differs from what it draws for the whole batch."""
        rows, weight = weighted_rows(self._rows(epoch, index), part)
        # Of its own, or the first sample of every part would be augmented alike.
        generator = generator_of(self._seed, epoch, index + 1, part.index, part.count)
        return Share(self._fetch(rows, generator), weight)

    def _rows(self, epoch: int, index: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, order_of(self._n_samples, self._seed, epoch))
        return rows_of(self._order[1], index, self._batch_size)


class Table(Protocol):
    """Samples that are tensors, row by row."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def rows(self, rows: Tensor) -> Self:
        """Some of them, by their numbers ``[b]`` on the device of the samples."""
        ...

    def to(self, device: str) -> Self:
        """The same on another device."""
        ...


T = TypeVar("T", bound=Table)


def resident(data: T, *, batch_size: int, seed: int, device: str) -> Batches[T]:
    """Shuffled batches of samples that stay on the device.

    Args:
        data: all samples for training.
        batch_size: samples per batch; the last batch holds the rest.
        seed: seed of the order.
        device: where they are kept.
    """
    there = data.to(device)
    return Batches(lambda rows, generator: there.rows(rows.to(device)), len(there), batch_size=batch_size, seed=seed)


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

    def part(self, epoch: int, index: int, part: Part) -> Share[B]:
        """The one batch."""
        return Share(self._batch, 1.0)


def size_of(n_samples: int, index: int, batch_size: int) -> int:
    """Samples in a batch of an epoch; the last one has the rest."""
    return min(batch_size, n_samples - index * batch_size)


def rows_of(order: Tensor, index: int, batch_size: int) -> Tensor:
    """The sample numbers of a batch.

    Raises:
        InvalidInputError: the epoch has no such batch; an empty one would give losses of NaN.
    """
    count = -(-len(order) // batch_size)
    if not 0 <= index < count:
        raise InvalidInputError(f"`index` must be that of one of {count} batches of an epoch, got {index}.")
    return order[index * batch_size : (index + 1) * batch_size]


def order_of(n_samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in an epoch, ``[n_samples]`` int64."""
    return torch.randperm(n_samples, generator=generator_of(seed, epoch, 0))


def mixed_seed(*numbers: int) -> int:
    """One seed of 32 bits from several numbers: torch's CPU generator reads no more bits of its seed than these."""
    # Mixed by numpy's SeedSequence, made for this: sums or shifts of seed and epoch give the same number twice.
    return int(numpy.random.SeedSequence(numbers).generate_state(1)[0])


def generator_of(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers."""
    return torch.Generator().manual_seed(mixed_seed(*numbers))
