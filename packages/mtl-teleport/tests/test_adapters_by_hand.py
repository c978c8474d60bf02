"""Adapters that are written by hand: what does not fit is refused by name, before anything is evaluated or moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_core import InvalidInputError, Problem
from mtl_teleport import COST, Adapter, AdapterSession, Always, Dense

Make = Callable[..., tuple[Problem, Any]]
Change = Callable[[Any], Any]


class ByHand:
    """A free displacement, of which one thing is changed."""

    def __init__(self, **changes: Change) -> None:
        self.changes = changes

    def attach(self, problem: Problem, *, batch: Any = None, generator: Any = None) -> AdapterSession:
        session = Dense().attach(problem, generator=generator)
        for name, change in self.changes.items():
            found = getattr(session, name)
            new = (lambda found=found, change=change: change(found())) if callable(found) else change(found)
            setattr(session, name, new)
        return session


def _run(conflicting: Make, adapter: Any) -> Any:
    problem, batch = conflicting()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    cost = COST(adapter=adapter, trigger=Always(), max_per_epoch=None, aim=None, max_steps=2, lr=0.02)
    before = copy.deepcopy((problem.model.state_dict(), cost.state_dict(), optimizer.state_dict()))
    random = torch.get_rng_state()
    try:
        return mtl_core.step(problem, batch, optimizer, cost).events[0]
    except InvalidInputError:
        after = (problem.model.state_dict(), cost.state_dict(), optimizer.state_dict())
        for name, value in before[0].items():
            assert torch.equal(after[0][name], value), name
        assert after[1]["_extra_state"]["own"]["schedule"] == before[1]["_extra_state"]["own"]["schedule"]
        assert torch.equal(torch.get_rng_state(), random)
        raise


NAME = "trunk.0.weight"  # [6, 4]

DISPLACEMENTS: dict[str, tuple[Change, str]] = {
    "a column": (lambda d: {**d, NAME: d[NAME][:, :1]}, r"\(6, 1\) for \(6, 4\)"),
    "a number": (lambda d: {**d, NAME: torch.tensor(1e-3, dtype=torch.float64)}, r"\(\) for \(6, 4\)"),
    "more dimensions": (lambda d: {**d, NAME: d[NAME][None]}, r"\(1, 6, 4\) for \(6, 4\)"),
    "transposed": (lambda d: {**d, NAME: d[NAME].T}, r"\(4, 6\) for \(6, 4\)"),
    "a strange name": (lambda d: {**d, "nobody": d[NAME]}, "'nobody'.*none of trunk.0.weight"),
    "a head's name": (lambda d: {**d, "big.weight": torch.zeros(2, 5)}, "'big.weight'.*none of"),
    "complex": (lambda d: {**d, NAME: d[NAME] * 1j}, "complex128"),
    "whole numbers": (lambda d: {**d, NAME: d[NAME].long()}, "int64"),
    "sparse": (lambda d: {**d, NAME: d[NAME].to_sparse()}, "sparse_coo"),
    "elsewhere": (lambda d: {**d, NAME: d[NAME].to("meta")}, "on meta"),
    "an array": (lambda d: {**d, NAME: d[NAME].numpy()}, "ndarray"),
    "a list": (lambda d: [*d.values()], "got list"),
    "nothing": (lambda d: None, "got NoneType"),
}
POINTS: dict[str, tuple[Change, str]] = {
    "one is missing": (lambda p: {k: v for k, v in p.items() if k != NAME}, "got 5 for 6"),
    "one of another shape": (lambda p: {**p, NAME: p[NAME][:, :1]}, r"trunk.0.weight.*\(6, 1\)"),
    "another order": (lambda p: dict(reversed(p.items())), "in the order"),
    "detached": (lambda p: {k: v.detach() for k, v in p.items()}, "without requires_grad"),
}
TRAINABLE: dict[str, tuple[Change, str]] = {
    "none": (lambda t: (), "got none"),
    "without gradients": (lambda t: tuple(x.detach() for x in t), "got one"),
    "no leaves": (lambda t: tuple(x * 1 for x in t), "got one"),
}
CASES = {
    f"{member}, {name}": (member, *case)
    for member, cases in {"delta": DISPLACEMENTS, "parameters": POINTS, "trainable": TRAINABLE}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused(case: str, conflicting: Make) -> None:
    """Of these, what can be broadcast was taken; the imaginary part of a displacement was dropped."""
    member, change, says = CASES[case]
    with pytest.raises(InvalidInputError, match=f"`{member}.*{says}") as caught:
        _run(conflicting, ByHand(**{member: change}))
    assert "ByHand" in str(caught.value)


def test_a_session_that_is_none(conflicting: Make) -> None:
    class Nothing:
        def attach(self, problem: Problem, *, batch: Any = None, generator: Any = None) -> Any:
            return None

    assert isinstance(Nothing(), Adapter)
    with pytest.raises(InvalidInputError, match=r"`adapter.attach` must return .*got NoneType from Nothing"):
        _run(conflicting, Nothing())


@pytest.mark.parametrize(
    "change",
    [lambda d: {k: v.float() for k, v in d.items()}, lambda d: {k: v.clone().requires_grad_() for k, v in d.items()}],
)
def test_what_fits_in_another_form_is_taken(change: Change, conflicting: Make) -> None:
    assert _run(conflicting, ByHand(delta=change)).accepted


@pytest.mark.parametrize("case", DISPLACEMENTS)
def test_merging_by_hand_refuses_it_too(case: str, conflicting: Make) -> None:
    change, says = DISPLACEMENTS[case]
    problem, _ = conflicting()
    before = copy.deepcopy(problem.model.state_dict())
    session = ByHand(delta=change).attach(problem)
    with pytest.raises(InvalidInputError, match=says):
        session.merge()
    for name, value in problem.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_is_refused_is_detached(conflicting: Make) -> None:
    taken_off: list[bool] = []

    def watched(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ()

    class Watched(ByHand):
        def attach(self, problem: Problem, *, batch: Any = None, generator: Any = None) -> AdapterSession:
            session = super().attach(problem, batch=batch, generator=generator)
            session.detach = lambda: taken_off.append(True)  # type: ignore[method-assign]
            return session

    with pytest.raises(InvalidInputError):
        _run(conflicting, Watched(trainable=watched))
    assert taken_off == [True]
