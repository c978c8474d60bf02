import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from mtl_benchmarks.protocol.plain_data import read_kind
from mtl_benchmarks.protocol.schedules import SCHEDULES, Constant, Cosine, Place, Plateau, Span, StepDecay
from mtl_core import InvalidParameterError, UnknownNameError


def optimizer(lr: float) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates_of_torch(scheduler: Any, n: int) -> list[float]:
    found = []
    for _ in range(n):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@given(st.integers(1, 7), st.floats(0.05, 1.0), st.integers(1, 4))
def test_step_decay_is_torchs(every: int, gamma: float, steps_per_epoch: int) -> None:
    schedule = StepDecay(every=Span(every), gamma=gamma)
    expected = rates_of_torch(StepLR(optimizer(0.3), every, gamma), 20)
    places = [Place(epoch * steps_per_epoch, 20 * steps_per_epoch, steps_per_epoch) for epoch in range(20)]
    assert [schedule.rate(0.3, place) for place in places] == pytest.approx(expected, rel=1e-12)
    within = Place(every * steps_per_epoch - 1, 20 * steps_per_epoch, steps_per_epoch)
    assert schedule.rate(0.3, within) == 0.3


@given(st.integers(2, 30), st.floats(0.0, 1.0))
def test_cosine_is_torchs(total: int, final: float) -> None:
    expected = rates_of_torch(CosineAnnealingLR(optimizer(0.3), total, eta_min=0.3 * final), total)
    schedule = Cosine(final=final)
    rates = [schedule.rate(0.3, Place(t, total, 5)) for t in range(total)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=40),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([0.0, 0.01]),
)
def test_plateau_is_torchs(values: list[float], patience: int, higher: bool, min_lr: float) -> None:
    theirs = ReduceLROnPlateau(
        optimizer(0.3), "max" if higher else "min", factor=0.7, patience=patience, min_lr=min_lr, eps=0
    )
    schedule = Plateau(watched="x", factor=0.7, patience=patience, min_lr=min_lr)
    for k, value in enumerate(values, start=1):
        theirs.step(value)
        place = Place(0, 1, 1, schedule.reductions(values[:k], higher_is_better=higher))
        assert schedule.rate(0.3, place) == pytest.approx(theirs.optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_value_that_is_no_number_is_no_improvement() -> None:
    schedule = Plateau(watched="x", patience=0)
    assert schedule.reductions([math.nan, 1.0, math.nan], higher_is_better=False) == 2


def test_the_least_rate_raises_nothing() -> None:
    schedule = Plateau(watched="x", min_lr=0.1)
    assert schedule.rate(0.01, Place(0, 1, 1, reductions=3)) == 0.01


@pytest.mark.parametrize(
    "schedule", [Constant(), StepDecay(every=Span(1), gamma=0.5), Cosine(final=0.1), Plateau(watched="x")]
)
def test_warm_up_is_a_share_of_the_schedule(schedule: Constant) -> None:
    warm = type(schedule)(**{**vars(schedule), "warm_up": Span(2)})
    total, per_epoch = 100, 10
    rise = [warm.rate(2.0, Place(t, total, per_epoch)) for t in range(20)]
    assert rise[0] < 0.11
    if not isinstance(schedule, StepDecay):
        assert all(a < b for a, b in itertools.pairwise(rise))
    assert warm.rate(2.0, Place(19, total, per_epoch)) == pytest.approx(
        2.0 if not isinstance(schedule, StepDecay) else 1.0
    )
    later = Place(60, total, per_epoch)
    if not isinstance(schedule, Cosine):  # its half wave is over the steps after the rise
        assert warm.rate(2.0, later) == schedule.rate(2.0, later)
    assert warm.rate(2.0, Place(total, total, per_epoch)) == pytest.approx(
        schedule.rate(2.0, Place(total, total, per_epoch))
    )


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(warm_up=Span(7, "steps")),
        StepDecay(every=Span(100), gamma=0.5),
        Cosine(final=0.1, warm_up=Span(2)),
        Plateau(watched="f1_*", factor=0.7, patience=5, min_lr=1e-5),
    ],
)
def test_round_trip(schedule: Constant) -> None:
    assert read_kind("schedule", SCHEDULES, schedule.as_dict()) == schedule


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Span(0), "count"),
        (lambda: Span(1, "hours"), "unit"),  # type: ignore[arg-type]
        (lambda: StepDecay(gamma=0.0), "gamma"),
        (lambda: Cosine(final=1.5), "final"),
        (lambda: Plateau(factor=1.0), "factor"),
        (lambda: Plateau(patience=-1), "patience"),
        (lambda: Plateau(min_lr=-1.0), "min_lr"),
        (lambda: Plateau(watched=""), "watched"),
        (lambda: read_kind("schedule", SCHEDULES, {"gamma": 1.0}), "schedule"),
    ],
)
def test_refuses(make: Any, name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{name}` must"):
        make()


def test_unknown_entries_list_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match="constant, step, cosine, plateau"):
        read_kind("schedule", SCHEDULES, {"kind": "exponential"})
    with pytest.raises(UnknownNameError, match="warm_up, every, gamma"):
        read_kind("schedule", SCHEDULES, {"kind": "step", "gama": 1.0})
