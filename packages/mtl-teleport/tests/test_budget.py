"""What teleports may cost: counted by hand, never above the share, the same in a run that goes on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidParameterError, Problem, StepReport, step
from mtl_teleport import COST, Always, RandomTeleport, TeleportReport
from mtl_teleport.budget import Budget, look_passes, step_passes
from mtl_teleport.plan import Prices
from mtl_teleport.sharpness import ExactSharpness


class Mean:
    """An aggregator."""

    def __call__(self, jacobian: Tensor) -> Tensor:
        return jacobian.mean(0)


class Own:
    """A method with a step of its own."""

    def step(self, problem: Problem, batch: Any, optimizer: Any, *, options: Any = None) -> StepReport:
        return step(problem, batch, optimizer, Mean())


class Counted:
    """Two tasks that conflict on a small net, and how often they were evaluated."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.evaluations = 0
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh()).double()
        self.problem = Problem(net, self._losses, shared=net, tasks=("a", "b"))
        self.optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def _losses(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        self.evaluations += 1
        out = model(batch)
        return {"a": 5 * (out[:, 0] - 1 + out[:, 1]).square().mean(), "b": (out[:, 0] + 1).square().mean()}

    @staticmethod
    def batch(k: int) -> Tensor:
        return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k))

    def step(self, method: Any, k: int) -> list[TeleportReport]:
        found = step(self.problem, self.batch(k), self.optimizer, method).events
        return [event for event in found if isinstance(event, TeleportReport)]


def always(method: Any = None, **settings: Any) -> COST:
    return COST(method, trigger=Always(), max_per_epoch=None, **settings)


PROBES = [Counted.batch(100 + k) for k in range(8)]


@pytest.mark.parametrize(
    ("settings", "passes", "evaluations"),
    [
        # The losses before 1, three steps of (evaluation 1, gradient 2 + 5, second derivative with the losses 2), the
        # judgement 1, the gradients after 1 + 2·2.
        ({"search": "penalty"}, 1 + 3 * 10 + 1 + 5, 1 + 3 + 1 + 1),
        # A step has the tasks' own gradients as well; the point after the last is looked at once.
        ({}, 1 + 3 * 14 + 1 + 1 + 5, 1 + 3 + 1 + 1 + 1),
        # Two evaluations, and besides the tasks' a pass back through the second.
        ({"sharpness": "ascent"}, 1 + 3 * (2 + 2 * 3) + 1 + 1 + 5, 1 + 3 * 2 + 1 + 1 + 1),
    ],
)
def test_passes_by_hand(settings: dict[str, Any], passes: int, evaluations: int) -> None:
    counted = Counted()
    cost = always(budget=1e6, max_steps=3, aim=None, max_drift=None, **settings)
    (report,) = counted.step(cost, 0)
    assert report.passes == passes
    assert report.ended == "steps"
    # Beside the one by which the trigger looks.
    assert counted.evaluations == 1 + evaluations
    # Of the plain sum: a step is an evaluation and a pass back, the look one pass back more.
    assert (cost.budget.earned, cost.budget.spent) == (3, 2 + passes)


@pytest.mark.parametrize(("method", "earned", "look"), [(None, 3, 8), (Mean(), 6, 0), (Own(), 3, 11)])
def test_what_a_step_of_five_tasks_counts_as(method: Any, earned: int, look: int) -> None:
    wrapped = COST(method).method
    assert (step_passes(wrapped, 5), look_passes(wrapped, 5)) == (earned, look)


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "penalty": {"search": "penalty"},
    "ascent": {"sharpness": "ascent"},
    "random": {"sharpness": "random"},
    "random penalty": {"sharpness": "random", "search": "penalty", "probe_maximum": "task"},
    "newton": {"sharpness": "newton", "aim": None},
    "look-ahead": {"sharpness": "look-ahead", "aim": None},
    "look-ahead penalty": {"sharpness": "look-ahead", "aim": None, "search": "penalty"},
    "flat": {"sharpness": "flat", "aim": None},
    "conflict": {"conflict_weight": 1.0},
    "transported": {"htr": "transported"},
    "many looks": {"aim": 1.0001, "search": "penalty"},
    "all undone": {"max_drift": 1e-12, "drift_weight": 0.0, "reference": "loader"},
    "one batch": {"probe_batches": None},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [None, Mean(), Own()], ids=["losses", "gradients", "own step"])
@pytest.mark.parametrize("share", [0.6, 1.7])
def test_never_above_the_budget(way: str, method: Any, share: float) -> None:
    """In no step of a run; what is counted is at least what was evaluated."""
    counted = Counted()
    cost = always(method, budget=share, **{"probe_batches": PROBES, **WAYS[way]})
    plain = Counted()
    plain.step(COST(method, trigger=lambda gramian: False, max_per_epoch=None).method, 0)
    reports: list[TeleportReport] = []
    for k in range(int(100 / share)):
        reports += counted.step(cost, k)
        assert cost.budget.spent <= share * cost.budget.earned
        # The look's own evaluation is the step's, but for a method that makes one of its own.
        assert counted.evaluations - (k + 1) * plain.evaluations <= cost.budget.spent
    assert len(reports) >= 2
    assert {report.ended for report in reports} <= {"budget", "aim", "steps", "no direction"}
    assert sum(report.passes for report in reports) <= cost.budget.spent <= share * cost.budget.earned


def test_a_larger_budget_buys_steps_and_batches() -> None:
    prices = Prices.of(3, sharpness=ExactSharpness(), search="projected", has_conflict_term=False, htr="keep", rounds=2)
    # A step: 1 + 2·3 + 9; a batch: before and after; after the move 1 + 2·3 and the last look.
    assert (prices.step, prices.batch, prices.fixed) == (16, 2, 8)
    assert prices.least(2) == 8 + 2 * 2 + 3 * 16
    for left in range(prices.least(2), 1000):
        batches = prices.batches(left)
        steps = (prices.search(left - prices.after, batches) - 1) // prices.step
        assert steps >= 3
        assert batches <= max(2, steps)
    found = [prices.batches(left) for left in (60, 100, 160, 400)]
    assert found == sorted(found)
    assert found[-1] > found[0] == 2


def test_teleports_are_fewer_where_they_cannot_be_paid() -> None:
    """A step earns 3 · 0.1."""
    counted, cost = Counted(), always(budget=0.1, probe_batches=PROBES)
    least = look_passes(cost.method, 2) + cost._prices(2).least(2)
    first = next(k for k in itertools.count() if counted.step(cost, k))
    assert first + 1 == -(-10 * least // 3)
    assert not any(counted.step(cost, k) for k in range(first + 1, first + 100))


def run(budget: float | None, steps: int, resume_at: int | None = None) -> tuple[list[Tensor], dict[str, int], int]:
    """A run, which may be broken off and go on from its states; probe batches are those of every run."""

    def made() -> tuple[Counted, COST]:
        return Counted(), always(Mean(), budget=budget, probe_batches=PROBES, seed=3)

    counted, cost = made()
    reports = 0
    for k in range(steps):
        if k == resume_at:
            states = [copy.deepcopy(each.state_dict()) for each in (counted.problem.model, counted.optimizer, cost)]
            counted, cost = made()
            for each, state in zip((counted.problem.model, counted.optimizer, cost), states, strict=True):
                each.load_state_dict(state)
        reports += len(counted.step(cost, k))
    return [p.detach() for p in counted.problem.shared], cost.budget.state_dict(), reports


@pytest.mark.parametrize("at", [1, 37, 80])
def test_a_run_that_goes_on_is_the_run(at: int) -> None:
    whole, resumed = run(0.4, 120), run(0.4, 120, at)
    assert whole[2] >= 2
    assert whole[1:] == resumed[1:]
    assert all(torch.equal(p, q) for p, q in zip(whole[0], resumed[0], strict=True))


def test_copies_count_for_themselves() -> None:
    counted, cost = Counted(), always(budget=0.1, probe_batches=PROBES)
    counted.step(cost, 0)
    other = copy.deepcopy(cost)
    counted.step(other, 1)
    assert (cost.budget.earned, other.budget.earned) == (3, 6)


def test_a_step_that_raises_counts_nothing() -> None:
    counted, cost = Counted(), always(budget=2.0, probe_batches=PROBES)
    for k in range(30):
        counted.step(cost, k)
    before = cost.budget.state_dict()
    fine = counted.problem.losses
    counted.problem.losses = lambda *a, **k: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        counted.step(cost, 30)
    counted.problem.losses = fine  # type: ignore[method-assign]
    assert cost.budget.state_dict() == before


def test_without_a_budget_every_step_and_batch_is_taken() -> None:
    counted, cost = Counted(), always(budget=None, aim=None, probe_batches=PROBES)
    (report,) = counted.step(cost, 0)
    assert (report.ended, report.adapter_steps) == ("steps", 16)
    # Eight batches before; 17 points, of which those left again are evaluated only, and the last has no second pass;
    # eight batches to judge; the gradients.
    left_again = [growth != growth for growth in report.search_growth]
    assert len(left_again) == 17
    assert report.passes == 8 + 17 * 14 - 2 * (not left_again[-1]) - 13 * sum(left_again) + 8 + 5


@pytest.mark.parametrize("given", [lambda: always(budget=0.1), lambda: COST(budget=0.1), lambda: COST(budget=1e-6)])
def test_by_hand_no_budget_is_asked(given: Callable[[], COST]) -> None:
    from mtl_core.extension import collect_batch

    counted, cost = Counted(), given()
    gradients = collect_batch(counted.problem, PROBES[0])
    report = cost.teleport(counted.problem, PROBES, gradients, lr=1e-2)
    assert report.adapter_steps > 3
    assert cost.budget.state_dict() == {"earned": 0, "spent": 0}


@pytest.mark.parametrize("preset", [COST, COST.paper, COST.released])
def test_there_is_no_budget_unless_one_is_given(preset: Callable[..., COST]) -> None:
    assert preset().budget.share is None


def test_random_moves_have_no_budget() -> None:
    assert RandomTeleport(length=1.0).budget.share is None


@pytest.mark.parametrize("share", [0, -0.1, float("nan"), float("inf"), "a"])
@pytest.mark.parametrize("given", [lambda share: COST(budget=share), Budget])
def test_bad_shares(given: Callable[[Any], Any], share: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"`budget` must be"):
        given(share)
