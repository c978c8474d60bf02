"""Batches of data read sample by sample, by worker processes, in an order that can be taken up anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from mtl_benchmarks.batching.batches import (
    Part,
    Share,
    generator_of,
    mixed_seed,
    order_of,
    rows_of,
    size_of,
    weighted_rows,
)
from mtl_benchmarks.batching.randomness import seeded_globally
from mtl_benchmarks.batching.tally import Rows
from mtl_benchmarks.interrupts import shielded
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.checks import positive_int

__all__ = ["LoadedBatches", "Loading", "Loads", "on_device"]

_OF_A_SAMPLE = (0, 0, 1)
"""Sets the seeds of samples apart from those of orders and batches."""

_Key = tuple[int, int]
_Request = tuple[int, int, Part]


@dataclass(frozen=True)
class Loading:
    """How batches that are read sample by sample are read ahead. What a run computes does not depend on it.

    Args:
        workers: processes that read; with 0 a batch is read when its step begins.
        prefetch: batches that each of them reads ahead.

    Raises:
        InvalidParameterError: ``workers`` is not a whole number of at least 0, or ``prefetch`` not one of at least 1.
    """

    workers: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        if type(self.workers) is not int or self.workers < 0:
            raise InvalidParameterError(f"`workers` must be a whole number of at least 0, got {self.workers!r}.")
        positive_int("prefetch", self.prefetch)


@runtime_checkable
class Loads(Protocol):
    """What a batch source offers that reads ahead, in processes of its own."""

    def open(self, *, workers: int, prefetch: int, parts: Sequence[Part]) -> None:
        """Read ahead from the next batch on that is asked for.

        Args:
            workers: processes that read; with 0 a batch is read when it is asked for.
            prefetch: batches that each of them reads ahead.
            parts: the parts of each batch that are asked for, in that order.
        """
        ...

    def close(self) -> None:
        """End the processes."""
        ...


class LoadedBatches:
    """Shuffled mini-batches of a map-style ``Dataset``, with random access.

    The order of an epoch is that of :class:`~mtl_benchmarks.batching.batches.Batches`, a function of (seed, epoch). A
    sample is a function of (seed, epoch, its number): ``augment`` gets a generator of its own for each, and while a
    sample is read the global generators of Python, numpy and torch are seeded by these three too. So batches are the
    same with any number of workers, wherever a run is taken up, and however many processes divide them.

    Workers read ahead along the order of training, over the ends of epochs, and stay for the whole run. Batches out of
    that order, such as those on which a teleport holds the losses, are read in this process and do not disturb them.

    Args:
        dataset: ``dataset[k]`` gives sample ``k``; it has a length.
        batch_size: samples per batch; the last batch of an epoch holds the rest.
        seed: of the order and of what samples draw.
        device: where the batches are to be; from pinned memory where that is a GPU.
        augment: makes of a sample and a generator what is put into the batch.
        collate: makes a batch of samples; by default torch's, which stacks tensors in any nesting.

    Raises:
        InvalidParameterError: the data set has no length or is empty, or ``batch_size`` is not positive.

    Example:
        >>> batches = LoadedBatches(torch.arange(5.0), batch_size=2, seed=0)
        >>> len(batches), torch.cat([batches.batch(0, k) for k in range(3)]).sort().values
        (3, tensor([0., 1., 2., 3., 4.]))
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        seed: int,
        device: str = "cpu",
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InvalidParameterError(
                f"`dataset` must have a length and samples by number, got {type(dataset).__name__}."
            )
        self._n_samples = positive_int("length of dataset", len(dataset))
        self._batch_size = positive_int("batch_size", batch_size)
        self._seed = seed
        self._device = torch.device(device)
        self._samples = _Samples(dataset, augment, seed)
        self._collate = collate
        self._orders: dict[int, Tensor] = {}
        self._workers = 0
        self._prefetch = 2
        self._parts: tuple[Part, ...] = (Part(),)
        self._stream: Any = None
        self._expected: _Request | None = None

    def __len__(self) -> int:
        return -(-self._n_samples // self._batch_size)

    def open(self, *, workers: int, prefetch: int = 2, parts: Sequence[Part] = (Part(),)) -> None:
        """Read ahead from the next batch on that is asked for; see :class:`Loads`."""
        self.close()
        self._workers, self._prefetch, self._parts = workers, prefetch, tuple(parts)

    def close(self) -> None:
        """End the workers."""
        stream, self._stream, self._expected = self._stream, None, None
        if stream is not None:
            # It does so by itself when its last reference is gone, which the traceback of an error may hold for long.
            stream._shutdown_workers()

    def batch(self, epoch: int, index: int) -> Any:
        """Batch ``index`` of ``epoch``, the same at every call."""
        return self._loaded((epoch, index, Part()))

    def size(self, index: int) -> int:
        """Samples in batch ``index``, in every epoch."""
        return size_of(self._n_samples, index, self._batch_size)

    def part(self, epoch: int, index: int, part: Part) -> Share[Any]:
        """A part of that batch; its samples are those that the whole batch has there."""
        _, weight = self._rows((epoch, index, part))
        return Share(self._loaded((epoch, index, part)), weight)

    def _loaded(self, request: _Request) -> Any:
        # On first use: the run may begin anywhere, and processes are not started for a run that only reads its result.
        if self._workers and self._stream is None and request[2] in self._parts:
            self._begin(request)
        # Out of the order of training: read here and now, and the workers' course is left alone.
        if self._stream is None or request != self._expected:
            keys = self._keys(request)
            return on_device(self._collate([self._samples[key] for key in keys]), self._device)
        found = next(self._stream)
        self._expected = self._after(request)
        return on_device(found, self._device)

    def _begin(self, request: _Request) -> None:
        loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=_Course(self, request),
            num_workers=self._workers,
            prefetch_factor=self._prefetch,
            # They hold the opened data set, which may take longer to open than an epoch to read.
            persistent_workers=True,
            collate_fn=self._collate,
            pin_memory=self._device.type == "cuda",
            # The loader draws a seed for its workers: from the global generator, it would be missing there after a
            # restart, or there twice.
            generator=torch.Generator(),
            worker_init_fn=_keep_quiet,
        )
        with shielded():  # the workers are started here
            self._stream, self._expected = iter(loader), request

    def _after(self, request: _Request) -> _Request:
        epoch, index, part = request
        place = self._parts.index(part) + 1
        if place < len(self._parts):
            return epoch, index, self._parts[place]
        return (epoch, index + 1, self._parts[0]) if index + 1 < len(self) else (epoch + 1, 0, self._parts[0])

    def _keys(self, request: _Request) -> list[_Key]:
        return [(request[0], row) for row in self._rows(request)[0].tolist()]

    def _rows(self, request: _Request) -> tuple[Tensor, float]:
        epoch, index, part = request
        if epoch not in self._orders:
            # Workers are ahead of the training by less than an epoch, and one that is never trained on comes between.
            while len(self._orders) > 2:
                del self._orders[next(iter(self._orders))]
            # Drawn once per epoch: a permutation of a large data set for every batch would take longer than the batch.
            self._orders[epoch] = order_of(self._n_samples, self._seed, epoch)
        order = self._orders[epoch]
        return weighted_rows(rows_of(order, index, self._batch_size), part)


def _keep_quiet(worker: int) -> None:
    """In a worker: no traceback of the thread that hands over tensors, where the run has ended in the midst of one."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not issubclass(kind, BrokenPipeError | ConnectionResetError):
            before(kind, error, traceback)

    sys.excepthook = hook


class _Course:
    """The keys of the batches from one on, without end."""

    def __init__(self, batches: LoadedBatches, first: _Request) -> None:
        self._batches = batches
        self._first = first

    def __iter__(self) -> Iterator[list[_Key]]:
        request = self._first
        # Without end, over the ends of epochs: the loader would start its workers anew for each.
        while True:
            yield self._batches._keys(request)
            request = self._batches._after(request)


class _Samples(Dataset[Any]):
    """Samples by epoch and number."""

    def __init__(self, dataset: Any, augment: Callable[[Any, torch.Generator], Any] | None, seed: int) -> None:
        self._dataset = dataset
        self._augment = augment
        self._seed = seed

    def __getitem__(self, key: _Key) -> Any:
        numbers = (self._seed, *key, *_OF_A_SAMPLE)
        # For augmentations that draw from global generators. In the training's own process these must go on as if
        # nothing had been drawn.
        with seeded_globally(mixed_seed(*numbers), keep=get_worker_info() is None):
            sample = self._dataset[key[1]]
            return sample if self._augment is None else self._augment(sample, generator_of(*numbers))


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch on a device: tensors in any nesting of mappings, tuples and lists, and objects that have ``to``.

    Raises:
        InvalidInputError: there is something else in it that is no plain value.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, Rows):
        return Rows(on_device(batch.values, device))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(on_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(on_device(value, device) for value in batch)
    if batch is None or isinstance(batch, bool | int | float | str | bytes):
        return batch
    if not hasattr(batch, "to"):
        raise InvalidInputError(
            f"`collate` must give tensors, in mappings, tuples and lists, or an object with `to(device)`, got "
            f"{type(batch).__name__}."
        )
    return batch.to(device)
