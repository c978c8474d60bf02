from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import Problem
from mtl_teleport import Dense, LoRA, Trigger
from mtl_teleport.adapters import AdapterSession
from mtl_teleport.aim import Aim
from mtl_teleport.climb import Climb, Limits
from mtl_teleport.objective import Objective
from mtl_teleport.search import penalty, projected
from mtl_teleport.search_context import Search
from mtl_teleport.sharpness import AscentSharpness, ExactSharpness

X = torch.zeros(1)


class Never(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return False


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


class Valley(nn.Module):
    """Three numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def _product(m: nn.Module, _: object) -> Tensor:
    """L = x_1 x_2: on a level set the gradient norm is |(x_1, x_2)|, which has no bound."""
    x = m.x
    assert isinstance(x, Tensor)
    return (x[0] * x[1]).view(1)


def _climb(
    problem: Problem, *, max_steps: int = 20, lr: float = 0.05, max_drift: float | None = 0.02, **weights: float
) -> Climb:
    session: AdapterSession = Dense().attach(problem)
    objective = Objective(
        ExactSharpness(), torch.ones(problem.n_tasks), **{"drift_weight": 3.0, "gain_weight": 0.1, **weights}
    )
    held = (session.evaluate(X).full().detach(),)
    search = Search(problem, (X,), held, torch.zeros(problem.n_tasks, problem.n_tasks), torch.Generator())
    return Climb(session, objective, search, held, Limits(lr, max_steps, max_drift), torch.Generator())


def test_projected_search_stays_on_the_level_set() -> None:
    problem = Problem(Valley(1.0, 1.1), _product, shared="x", tasks=("a",))
    climb = _climb(problem)
    assert projected(climb, Aim(Never(), None)) == 20
    x = problem.shared[0].detach() + climb.session.delta()["x"]
    assert float(x[0] * x[1]) == pytest.approx(1.1, rel=0.01)
    assert float(x.norm()) > 2 * math.hypot(1.0, 1.1)


def test_projected_search_never_ends_above_half_the_allowance() -> None:
    for lr in (1e-3, 0.1, 1.0, 10.0):
        problem = Problem(Valley(1.0, 1.1), _product, shared="x", tasks=("a",))
        climb = _climb(problem, lr=lr, max_drift=0.01)
        projected(climb, Aim(Never(), None))
        x = problem.shared[0].detach() + climb.session.delta()["x"]
        assert abs(float(x[0] * x[1]) - 1.1) / 1.1 <= 0.005


def test_the_first_step_by_hand() -> None:
    # At (3, 4): gain |x| has gradient (3, 4)/5, the loss has gradient (4, 3); what is left points along (-3, 4).
    problem = Problem(Valley(3.0, 4.0), _product, shared="x", tasks=("a",))
    climb = _climb(problem, max_steps=1, lr=0.01)
    projected(climb, Aim(Never(), None))
    expected = 0.01 * math.sqrt(2) * torch.tensor([-3.0, 4.0], dtype=torch.float64) / 5
    torch.testing.assert_close(climb.session.delta()["x"], expected)


def test_it_steers_back_to_the_losses_that_are_held() -> None:
    problem = Problem(Valley(3.0, 4.0), _product, shared="x", tasks=("a",))
    climb = _climb(problem, max_steps=3, lr=0.1, gain_weight=0.0)
    held = (torch.tensor([12.05], dtype=torch.float64),)
    moved = replace(climb, held=held)
    projected(moved, Aim(Never(), None))
    x = problem.shared[0].detach() + climb.session.delta()["x"]
    assert float(x[0] * x[1]) == pytest.approx(12.05, rel=1e-6)


def test_without_the_drift_term_it_climbs_freely() -> None:
    problem = Problem(Valley(3.0, 4.0), _product, shared="x", tasks=("a",))
    climb = _climb(problem, max_steps=1, lr=0.01, drift_weight=0.0)
    projected(climb, Aim(Never(), None))
    expected = 0.01 * math.sqrt(2) * torch.tensor([3.0, 4.0], dtype=torch.float64) / 5
    torch.testing.assert_close(climb.session.delta()["x"], expected)


def test_parallel_losses_are_one_constraint() -> None:
    def twice(m: nn.Module, batch: object) -> Tensor:
        return torch.cat([_product(m, batch), 2 * _product(m, batch)])

    problem = Problem(Valley(3.0, 4.0), twice, shared="x", tasks=("a", "b"))
    climb = _climb(problem, max_steps=1, lr=0.01)
    projected(climb, Aim(Never(), None))
    delta = climb.session.delta()["x"]
    torch.testing.assert_close(
        delta / delta.norm(), torch.tensor([-0.6, 0.8], dtype=torch.float64), rtol=1e-4, atol=1e-4
    )


def test_losses_that_fix_every_direction_allow_no_step() -> None:
    problem = Problem(Valley(3.0, 4.0), lambda m, _: m.x * 1.0, shared="x", tasks=("a", "b"))
    climb = _climb(problem)
    assert projected(climb, Aim(Never(), None)) == 0
    assert not climb.session.delta()["x"].any()


def test_penalty_lowers_its_objective() -> None:
    problem = Problem(Valley(1.0, 1.1), _product, shared="x", tasks=("a",))
    climb = _climb(problem, lr=0.01, drift_weight=0.05)

    def total() -> float:
        return float(climb.objective(climb.objective.point(climb.session, X), climb.held[0]).total)

    start = total()
    assert penalty(climb, Aim(Never(), None)) == 20
    assert total() < start


@pytest.mark.parametrize("train", [projected, penalty])
class TestAim:
    def _run(self, train: Any, trigger: Trigger, factor: float | None, **settings: float) -> tuple[int, float]:
        problem = Problem(Valley(1.0, 1.1), _product, shared="x", tasks=("a",))
        climb = _climb(problem, max_steps=30, drift_weight=0.05, max_drift=None)
        steps = train(climb, Aim(trigger, factor))
        x = problem.shared[0].detach() + climb.session.delta()["x"]
        return steps, float(x.norm()) / math.hypot(1.0, 1.1)

    def test_it_stops_when_the_norm_has_grown(self, train: Any) -> None:
        steps, growth = self._run(train, Never(), 1.2)
        assert steps < 30
        assert growth >= 1.2

    def test_it_goes_on_while_there_is_conflict(self, train: Any) -> None:
        assert self._run(train, Always(), 1.2)[0] == 30

    def test_without_an_aim_it_takes_every_step(self, train: Any) -> None:
        assert self._run(train, Never(), None)[0] == 30


def test_batches_take_turns() -> None:
    seen: list[float] = []

    def losses(m: nn.Module, batch: Tensor) -> Tensor:
        seen.append(float(batch))
        return m(batch.view(1, 1).expand(1, 2)).square().mean(0)

    problem = Problem(nn.Linear(2, 1), losses, shared="weight", tasks=("a",))
    session = LoRA(rank=1).attach(problem)
    batches = (torch.tensor(1.0), torch.tensor(2.0))
    held = tuple(session.evaluate(b).full().detach() for b in batches)
    seen.clear()
    objective = Objective(AscentSharpness(), torch.ones(1), drift_weight=3.0, gain_weight=0.1)
    search = Search(problem, batches, held, torch.zeros(1, 1), torch.Generator())
    penalty(Climb(session, objective, search, held, Limits(1e-3, 4, 0.02), torch.Generator()), Aim(Never(), None))
    assert seen == [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]
