"""Samples for training, choosing and reporting, drawn at random, and evaluations over parts of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_benchmarks.batching.batches import Part, resident
from mtl_benchmarks.batching.splits import drawn_splits
from mtl_benchmarks.batching.tally import Rows, combined, tallied
from mtl_core import InvalidParameterError


@given(st.integers(1, 30), st.integers(0, 10), st.integers(1, 10), st.integers(0, 5), st.integers(0, 2**31))
def test_no_sample_is_in_two_splits(train: int, validation: int, test: int, more: int, seed: int) -> None:
    n = train + validation + test + more
    found = drawn_splits(n, train=train, validation=validation, test=test, seed=seed, what="things")
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": train, "validation": validation, "test": test
    }  # fmt: skip
    drawn = torch.cat(list(found.values())).tolist()
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(range(n))
    # What is tested on does not depend on how much there is to train on, and only on the seed.
    again = drawn_splits(n, train=1, validation=validation, test=test, seed=seed, what="things")
    assert torch.equal(again["test"], found["test"])


def test_more_than_there_is() -> None:
    with pytest.raises(InvalidParameterError, match=r"at most 5, the films there are, got 3 \+ 1 \+ 2 = 6\."):
        drawn_splits(5, train=3, validation=1, test=2, seed=0, what="films")


class Numbers:
    """A table of one column."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, rows: Tensor) -> Numbers:
        return Numbers(self.values[rows])

    def to(self, device: str) -> Numbers:
        return Numbers(self.values.to(device))


def test_batches_of_a_table_hold_each_row_once() -> None:
    batches = resident(Numbers(torch.arange(7)), batch_size=3, seed=1, device="cpu")
    assert len(batches) == 3
    seen = torch.cat([batches.batch(2, k).values for k in range(3)])
    assert sorted(seen.tolist()) == list(range(7))
    assert torch.equal(batches.batch(2, 1).values, batches.batch(2, 1).values)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_parts_of_a_tally_make_the_whole(parts: int, is_training: bool) -> None:
    model = nn.Dropout().train(is_training)
    modes = []

    def count(data: Tensor, begin: int, end: int) -> dict[str, Tensor | Rows]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"sum": model(data[begin:end]).sum(), "values": Rows(data[begin:end])}

    splits = {"validation": torch.arange(4.0), "test": torch.arange(7.0)}
    found = combined([tallied(model, splits, count, part=Part(k, parts)) for k in range(parts)])
    for split, data in splits.items():
        values = found[split]["values"]
        assert isinstance(values, Rows)
        assert torch.equal(values.values, data)
        assert found[split]["sum"] == data.sum()
    assert set(modes) == {(False, False)}
    assert model.training is is_training
