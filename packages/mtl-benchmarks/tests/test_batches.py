import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtl_benchmarks.batching.batches import Batches, Part, Probes, Repeated
from mtl_benchmarks.batching.loading import LoadedBatches
from mtl_core import InvalidInputError, InvalidParameterError


def rows_of(rows: Tensor, generator: torch.Generator) -> tuple[list[int], float]:
    return rows.tolist(), float(torch.rand((), generator=generator))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 300))
def test_every_epoch_is_a_permutation(n: int, size: int, seed: int, epoch: int) -> None:
    batches = Batches(rows_of, n, batch_size=size, seed=seed)
    seen = [row for k in range(len(batches)) for row in batches.batch(epoch, k)[0]]
    assert sorted(seen) == list(range(n))


def test_access_is_random_and_repeatable() -> None:
    forward = Batches(rows_of, 20, batch_size=6, seed=3)
    expected = {(e, k): forward.batch(e, k) for e in range(3) for k in range(4)}
    backward = Batches(rows_of, 20, batch_size=6, seed=3)
    assert {key: backward.batch(*key) for key in reversed(expected)} == expected
    assert len({draw for _, draw in expected.values()}) == len(expected)
    assert expected[0, 0] != Batches(rows_of, 20, batch_size=6, seed=4).batch(0, 0)
    assert expected[0, 0] != expected[1, 0]


def test_probes_can_be_iterated_again_and_are_no_epoch_of_the_training() -> None:
    batches = Batches(rows_of, 20, batch_size=6, seed=3)
    probes = Probes(batches)
    first = list(probes)
    assert first == list(probes)
    assert first != [batches.batch(0, k) for k in range(4)]
    assert sorted(row for rows, _ in first for row in rows) == list(range(20))


@pytest.mark.parametrize("index", [-1, 4, 10**6])
def test_a_batch_that_an_epoch_has_not_is_refused(index: int) -> None:
    """An empty one would give losses of NaN."""
    for batches in (
        Batches(rows_of, 20, batch_size=6, seed=3),
        LoadedBatches(torch.arange(20.0), batch_size=6, seed=3),
    ):
        with pytest.raises(InvalidInputError, match=f"one of 4 batches of an epoch, got {index}"):
            batches.batch(0, index)
        with pytest.raises(InvalidInputError, match="one of 4 batches"):
            batches.part(0, index, Part(0, 2))


def test_repeated() -> None:
    source = Repeated("same", 3)
    assert len(source) == 3
    assert source.batch(5, 2) == "same"


@pytest.mark.parametrize(("n", "size"), [(0, 1), (1, 0)])
def test_refuses(n: int, size: int) -> None:
    with pytest.raises(InvalidParameterError, match="at least 1"):
        Batches(rows_of, n, batch_size=size, seed=0)
