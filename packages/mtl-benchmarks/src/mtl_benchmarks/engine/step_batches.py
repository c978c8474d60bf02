"""What each step of a run is given: a batch, micro-batches of it, or the three batches that some methods ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtl_aggregators import ThreeBatches
from mtl_benchmarks.batching.batches import BatchSource, Part, Repeated, Share, part_of
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
    updates, and looks at as many samples, as with every other method.

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
        found = next((each for each in and_wrapped(method) if offers(each, TakesSeveralBatches)), None)
        self._in_threes = found is not None
        self._alone = ranks.size == 1
        n = _THREE if self._in_threes else training.accumulate
        # A problem without data has one batch, whatever its size, of which every part is the whole.
        is_cut = self._in_threes and not isinstance(source, Repeated)
        if is_cut and (training.accumulate > 1 or training.batch_size < _THREE * ranks.size):
            raise InvalidParameterError(
                f"{type(found).__name__} takes three batches, cut out of one: `batch_size` must be at least "
                f"{_THREE * ranks.size} and `accumulate` 1, got {training.batch_size} and {training.accumulate}. "
                "Choose another protocol, or another method."
            )
        # Processes and micro-batches divide a batch in one go, each process having n of its parts in a row.
        self.parts = tuple(Part(ranks.rank * n + k, ranks.size * n) for k in range(n))

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
        if self.parts == (Part(),):
            return self._source.batch(epoch, index)
        shares = [part_of(self._source, epoch, index, part) for part in self.parts]
        if self._in_threes:
            # Each third is a batch of its own, not a share of one: its mean is that of its own samples.
            return ThreeBatches(*(Share(share.batch, 1.0) if self._alone else share for share in shares))
        return shares[0] if len(shares) == 1 else MicroBatches(shares)


def and_wrapped(method: Any) -> Iterator[Any]:
    """A method, and all that it wraps."""
    yield method
    while isinstance(method, Wrapper):
        method = method.method
        yield method
