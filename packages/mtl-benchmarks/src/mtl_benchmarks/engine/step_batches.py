"""What each step of a run is given: a batch, micro-batches of it, or the three batches that some methods ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtl_aggregators import ThreeBatches
from mtl_benchmarks.batching.batches import BatchSource, HasSizes, Part, Repeated, Share, part_of
from mtl_benchmarks.batching.loading import Loading, Loads
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.ranks import Ranks
from mtl_core import InvalidParameterError, MicroBatches
from mtl_core.extension import TakesSeveralBatches, Wrapper, offers

__all__ = ["StepBatches", "and_wrapped"]

_THREE = len(ThreeBatches._fields)


class StepBatches:
    """The batches of a run as its method's step takes them.

    A method of three batches is given three disjoint thirds of each batch of the protocol, so that an epoch has as many
    updates, and looks at as many samples, as with every other method. Several processes divide each third, so that the
    thirds are those of one process.

    Args:
        source: the batches of the protocol.
        training: the protocol.
        ranks: the processes, each of which takes its parts of every batch.
        method: with whatever is wrapped around it.

    Raises:
        InvalidParameterError: the method takes three batches, and a batch of the protocol cannot be cut so.
    """

    def __init__(self, source: BatchSource[Any], training: Training, ranks: Ranks, method: object) -> None:
        self._source = source
        self._ranks = ranks.size
        found = next((each for each in and_wrapped(method) if offers(each, TakesSeveralBatches)), None)
        self._in_threes = found is not None
        if self._in_threes:
            # A problem without data has one batch, whatever its size, of which every part is the whole.
            if not isinstance(source, Repeated):
                _refuse_what_cannot_be_cut(type(found).__name__, source, training, ranks.size)
            # Third k of all, of which each process has its part: together they are the third that one process has.
            self.parts = tuple(Part(k * ranks.size + ranks.rank, _THREE * ranks.size) for k in range(_THREE))
        else:
            n = training.accumulate
            # Processes and micro-batches divide a batch in one go, each process having n of its parts in a row.
            self.parts = tuple(Part(ranks.rank * n + k, ranks.size * n) for k in range(n))
        self._is_whole = self.parts == (Part(),)

    def open(self, loading: Loading) -> None:
        """Begin to read ahead, where samples are read one by one."""
        if isinstance(self._source, Loads):
            self._source.open(workers=loading.workers, prefetch=loading.prefetch, parts=self.parts)

    def close(self) -> None:
        """End what reads ahead."""
        if isinstance(self._source, Loads):
            self._source.close()

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, epoch: int, index: int) -> Any:
        """What the step with this number within its epoch is given."""
        if self._is_whole:
            return self._source.batch(epoch, index)
        shares = [part_of(self._source, epoch, index, part) for part in self.parts]
        if self._in_threes:
            # Each third is a batch of its own, not a share of one: its mean is that of its own samples.
            weights = [self._weight_in_its_third(index, part) for part in self.parts]
            return ThreeBatches(*(Share(share.batch, w) for share, w in zip(shares, weights, strict=True)))
        return shares[0] if len(shares) == 1 else MicroBatches(shares)

    def _weight_in_its_third(self, index: int, part: Part) -> float:
        """What a process's part of a third counts for in the mean over the processes."""
        if self._ranks == 1 or not isinstance(self._source, HasSizes):
            return 1.0
        size = self._source.size(index)
        own, whole = part.bounds(size), Part(part.index // self._ranks, _THREE).bounds(size)
        return (own[1] - own[0]) * self._ranks / (whole[1] - whole[0])


def _refuse_what_cannot_be_cut(name: str, source: BatchSource[Any], training: Training, n_ranks: int) -> None:
    """Refuse batches of fewer than three samples, of which one would be in two thirds, and micro-batches."""
    rule = f"{name} takes three batches, cut out of one"
    if training.accumulate > 1 or training.batch_size < _THREE:
        raise InvalidParameterError(
            f"`batch_size` must be at least {_THREE} and `accumulate` 1, as {rule}, got {training.batch_size} and "
            f"{training.accumulate}. Choose another protocol, or another method."
        )
    if n_ranks > 1 and not isinstance(source, HasSizes):
        raise InvalidParameterError(
            f"`batches` must have size(index) where {n_ranks} processes train, as {rule}, got {type(source).__name__}. "
            "Batches and LoadedBatches have it."
        )
    # All but the last have as many samples as the first.
    for index in dict.fromkeys((0, len(source) - 1)):
        size = source.size(index) if isinstance(source, HasSizes) else _samples_up_to_three(source, index)
        if size < _THREE:
            where = "each batch of an epoch" if index == 0 else "the last batch of an epoch"
            raise InvalidParameterError(
                f"`batch_size` must leave no batch of fewer than {_THREE} samples, as {rule}, got "
                f"{training.batch_size}, by which {where} has {size}. Choose another batch size, or another method."
            )


def _samples_up_to_three(source: BatchSource[Any], index: int) -> int:
    """How many samples a batch has, if fewer than three: a part without one has no weight."""
    return sum(part_of(source, 0, index, Part(k, _THREE)).weight > 0 for k in range(_THREE))


def and_wrapped(method: Any) -> Iterator[Any]:
    """A method, and all that it wraps."""
    yield method
    while isinstance(method, Wrapper):
        method = method.method
        yield method
