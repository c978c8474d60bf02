from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mtl_core
from mtl_core import InvalidInputError, InvalidParameterError, Problem
from mtl_teleport import COST, RandomTeleport, Trigger

Make = Callable[..., tuple[Problem, Any]]


class Always(Trigger):
    def __call__(self, gramian: torch.Tensor) -> bool:
        return True


def _lengths(conflicting: Make, method: RandomTeleport, steps: int) -> list[float]:
    problem, batch = conflicting()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-3)
    return [e.length for _ in range(steps) for e in mtl_core.step(problem, batch, optimizer, method).events]  # type: ignore[attr-defined]


def test_every_move_has_the_length(conflicting: Make) -> None:
    method = RandomTeleport(length=0.3, trigger=Always(), max_per_epoch=None)
    assert _lengths(conflicting, method, 3) == pytest.approx([0.3] * 3)


def test_lengths_one_after_the_other(conflicting: Make) -> None:
    method = RandomTeleport(length=[0.1, 0.2], trigger=Always(), max_per_epoch=None)
    assert _lengths(conflicting, method, 3) == pytest.approx([0.1, 0.2, 0.1])


def test_a_limit_on_the_drift_shortens(conflicting: Make) -> None:
    method = RandomTeleport(length=3.0, trigger=Always(), max_per_epoch=None, max_drift=1e-3)
    (length,) = _lengths(conflicting, method, 1)
    assert 0 < length < 3.0


def test_directions_come_from_the_seed(conflicting: Make) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        problem, batch = conflicting()
        method = RandomTeleport(length=0.3, trigger=Always(), max_per_epoch=None, seed=seed)
        mtl_core.step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=1e-3), method)
        found.append(torch.cat([p.detach().flatten() for p in problem.shared]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_state_goes_on_where_it_was(conflicting: Make) -> None:
    method = RandomTeleport(length=[0.1, 0.2, 0.3], trigger=Always(), max_per_epoch=None)
    _lengths(conflicting, method, 2)
    fresh = RandomTeleport(length=[0.1, 0.2, 0.3], trigger=Always(), max_per_epoch=None)
    fresh.load_state_dict(method.state_dict())
    assert _lengths(conflicting, fresh, 1) == pytest.approx([0.3])


def test_it_moves_at_the_steps_that_are_named(conflicting: Make) -> None:
    """Whatever the trigger says, and only there: elsewhere a step is the wrapped method's own."""
    problem, batch = conflicting()
    method = RandomTeleport(length=0.3, trigger=lambda gramian: False, max_per_epoch=None, steps=[1, 4])
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-3)
    moved = [len(mtl_core.step(problem, batch, optimizer, method).events) for _ in range(6)]
    assert moved == [0, 1, 0, 0, 1, 0]
    with pytest.raises(InvalidParameterError, match="`steps` must be a whole number of at least 0, got -1"):
        RandomTeleport(length=0.3, steps=[0, -1])


@pytest.mark.parametrize("length", [0.0, -1.0, [0.1, 0.0]])
def test_lengths_are_positive(length: Any) -> None:
    with pytest.raises(InvalidParameterError, match="length"):
        RandomTeleport(length=length)


def test_no_lengths() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        RandomTeleport(length=[])


def test_a_state_of_another_class() -> None:
    with pytest.raises(InvalidInputError, match=r"of a RandomTeleport around a FixedWeights .* got one of a COST"):
        RandomTeleport(length=1.0).load_state_dict(COST().state_dict())
