from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from mtl_core import InvalidParameterError
from mtl_core.testing import gramians
from mtl_teleport import AnyMeanConflict, DominatedConflict, MajorityConflict, Trigger, WeakConflict


def _gramian(*rows: list[float]) -> Tensor:
    jacobian = torch.tensor(rows, dtype=torch.float64)
    return jacobian @ jacobian.T


HARMONY = _gramian([1.0, 0.1], [1.0, -0.1])
WEAK = _gramian([1.0, 0.0], [-0.1, 1.0])  # they conflict with each other, neither with the mean
DOMINATED = _gramian([4.0, 0.0], [-1.0, 0.5])
ONE_OF_THREE = _gramian([4.0, 0.0], [-2.0, 0.5], [1.0, 0.1])  # the smallest does not conflict with the mean
ORTHOGONAL = _gramian([1.0, 0.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("trigger", "fires"),
    [
        (WeakConflict(), [False, True, True, True]),
        (DominatedConflict(), [False, False, True, False]),
        (AnyMeanConflict(), [False, False, True, True]),
        (MajorityConflict(), [False, False, True, False]),
        (MajorityConflict(0.3), [False, False, True, True]),
    ],
)
def test_by_hand(trigger: Trigger, fires: list[bool]) -> None:
    assert [trigger(g) for g in (HARMONY, WEAK, DOMINATED, ONE_OF_THREE)] == fires


def test_an_absent_task_has_no_say() -> None:
    alone = torch.diag(torch.tensor([1.0, 0.0]))
    for trigger in (WeakConflict(), DominatedConflict(), AnyMeanConflict(), MajorityConflict()):
        assert not trigger(alone)


def test_any_mean_conflict_fires_where_the_mean_vanishes() -> None:
    opposite = _gramian([1.0, 0.0], [-1.0, 0.0])
    assert AnyMeanConflict()(opposite)
    assert not DominatedConflict()(opposite)


@given(gramian=gramians())
def test_conditions_combine(gramian: Tensor) -> None:
    one, two = WeakConflict(), MajorityConflict()
    assert (one & two)(gramian) == (one(gramian) and two(gramian))
    assert (one | two)(gramian) == (one(gramian) or two(gramian))


@given(gramian=gramians())
def test_a_dominated_conflict_is_a_conflict_with_the_mean(gramian: Tensor) -> None:
    assert not DominatedConflict()(gramian) or AnyMeanConflict()(gramian)


def test_names() -> None:
    both = WeakConflict() & (DominatedConflict() | MajorityConflict(0.25))
    assert both.name == "(WeakConflict & (DominatedConflict | MajorityConflict))"
    assert repr(both) == "(WeakConflict() & (DominatedConflict() | MajorityConflict(0.25)))"


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(InvalidParameterError, match="fraction"):
        MajorityConflict(fraction)
