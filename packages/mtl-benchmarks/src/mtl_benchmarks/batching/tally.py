"""Evaluations in parts: sums that add up to those of the whole, so that metrics are exact and no means of means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from mtl_benchmarks.batching.batches import Part
from mtl_core import InvalidInputError

__all__ = ["Rows", "Tallies", "Tally", "combined", "tallied"]

D = TypeVar("D", bound=Sized)


@dataclass(frozen=True)
class Rows:
    """Values of single samples, which are put behind one another: what a metric needs that is made of no sums.

    Attributes:
        values: ``[n, ...]``, one row per sample of the part.
    """

    values: Tensor


Tally = Mapping[str, Mapping[str, Tensor | Rows]]
"""split → name → sums (counts, confusion matrices, sums of errors, in float64 or int64) or rows."""


@runtime_checkable
class Tallies(Protocol):
    """What a benchmark offers whose evaluation several processes can divide."""

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """The sums over a part of every evaluated split, by ``part.bounds`` of its samples or of its batches."""
        ...

    def metrics_from(self, tally: Tally) -> Mapping[str, Mapping[str, float]]:
        """The metrics of every split from the sums over all of it."""
        ...


@torch.no_grad()
def tallied(
    model: nn.Module,
    splits: Mapping[str, D],
    count: Callable[[D, int, int], Mapping[str, Tensor | Rows]],
    *,
    part: Part,
) -> Tally:
    """A model's sums over a part of every split, in evaluation mode and without gradients; its mode is put back.

    Args:
        model: what is evaluated.
        splits: split → its samples, or whatever else is divided among the parts.
        count: the sums over the samples from one place up to another.
        part: of each split.

    Example:
        >>> found = tallied(
        ...     nn.Identity(), {"test": [1, 2, 3]}, lambda data, a, b: {"n": torch.tensor(b - a)}, part=Part()
        ... )
        >>> found["test"]["n"]
        tensor(3)
    """
    was_training = model.training
    model.eval()
    found = {split: count(data, *part.bounds(len(data))) for split, data in splits.items()}
    model.train(was_training)
    return found


def combined(tallies: Sequence[Tally]) -> Tally:
    """The tally of the whole from those of its parts, in their order.

    Raises:
        InvalidInputError: the parts have not the same splits and names.

    Example:
        >>> parts = [{"test": {"right": torch.tensor(3), "of": torch.tensor(4)}} for _ in range(2)]
        >>> combined(parts)["test"]["right"]
        tensor(6)
    """
    first = tallies[0]
    for other in tallies[1:]:
        if {s: set(row) for s, row in other.items()} != {s: set(row) for s, row in first.items()}:
            raise InvalidInputError(f"`tallies` must have the same entries, got {first} and {other}.")
    return {
        split: {name: _joined([tally[split][name] for tally in tallies]) for name in first[split]} for split in first
    }


def _joined(values: Sequence[Tensor | Rows]) -> Tensor | Rows:
    rows = [value.values for value in values if isinstance(value, Rows)]
    if rows:
        return Rows(torch.cat(rows))
    total = torch.zeros(())
    for k, value in enumerate(values):
        assert isinstance(value, Tensor)
        # In the order of the parts, so that every process gets the same bits.
        total = value if k == 0 else total + value
    return total
