from __future__ import annotations

import pytest

from mtl_core import InvalidInputError, InvalidParameterError
from mtl_teleport.schedule import Schedule


def test_someone_must_tell_of_epochs() -> None:
    with pytest.raises(InvalidInputError, match=r"Call cost\.start_epoch\(epoch\).*or pass steps_per_epoch="):
        Schedule().begin_step()


def test_without_limits_no_epoch_is_needed() -> None:
    schedule = Schedule(max_per_epoch=None)
    schedule.begin_step()
    for _ in range(5):
        assert schedule.is_open
        schedule.record()


def test_a_number_per_epoch() -> None:
    schedule = Schedule(max_per_epoch=2)
    schedule.start_epoch(0)
    schedule.begin_step()
    schedule.record()
    assert schedule.is_open
    schedule.record()
    assert not schedule.is_open
    schedule.start_epoch(0)
    assert not schedule.is_open, "the same epoch again"
    schedule.start_epoch(1)
    assert schedule.is_open


def test_a_delayed_start() -> None:
    schedule = Schedule(start_after=2)
    found = []
    for epoch in range(4):
        schedule.start_epoch(epoch)
        schedule.begin_step()
        found.append(schedule.is_open)
    assert found == [False, False, True, True]


def test_epochs_by_counting() -> None:
    schedule = Schedule(start_after=1, steps_per_epoch=3)
    started = [schedule.begin_step() for _ in range(7)]
    assert started == [0, None, None, 1, None, None, 2]
    assert schedule.steps == 7


def test_state_is_everything() -> None:
    schedule = Schedule(steps_per_epoch=3)
    for _ in range(5):
        schedule.begin_step()
    schedule.record()
    fresh = Schedule(steps_per_epoch=3)
    fresh.load_state_dict(schedule.state_dict())
    assert fresh.is_open == schedule.is_open
    assert [fresh.begin_step() for _ in range(4)] == [schedule.begin_step() for _ in range(4)]
    assert fresh.state_dict() == schedule.state_dict()


@pytest.mark.parametrize(
    "settings", [{"start_after": -1}, {"start_after": 0.5}, {"max_per_epoch": 0}, {"steps_per_epoch": 0}]
)
def test_bad_settings(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(settings))):
        Schedule(**settings)


@pytest.mark.parametrize("epoch", [-1, 0.5, True])
def test_bad_epochs(epoch: int) -> None:
    with pytest.raises(InvalidInputError, match="epoch"):
        Schedule().start_epoch(epoch)
