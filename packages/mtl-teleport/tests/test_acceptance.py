from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mtl_core import Problem
from mtl_teleport.acceptance import Verdict, judge
from mtl_teleport.evaluation import probe_losses
from mtl_teleport.search_context import Search

X = torch.zeros(1)


class Point(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))


def _problem(*, finite_below: float = math.inf) -> Problem:
    model = Point()

    def losses(m: nn.Module, _: object) -> Tensor:
        x = m.x
        assert isinstance(x, Tensor)
        return torch.where(x < finite_below, x, torch.full_like(x, math.nan))

    return Problem(model, losses, shared=model, tasks=("a",))


def _judge(problem: Problem, step: float, max_drift: float | None = 0.1, backtracks: int = 6) -> Verdict:
    own = probe_losses(problem, (X,))
    delta = {"x": torch.tensor([step], dtype=torch.float64)}
    search = Search(problem, (X,), own, torch.zeros(1, 1), torch.Generator())
    return judge(search, delta, max_drift=max_drift, backtracks=backtracks)


def test_a_small_drift_is_accepted_whole() -> None:
    verdict = _judge(_problem(), 0.05)
    assert verdict.values is not None
    assert verdict.values["x"].tolist() == pytest.approx([1.05])
    assert (verdict.scale, verdict.reason) == (1.0, "accepted")
    assert verdict.drift == pytest.approx(0.05)


def test_a_large_drift_is_shortened() -> None:
    verdict = _judge(_problem(), 0.2)
    assert verdict.values is not None
    assert verdict.scale == pytest.approx(0.45)  # 0.9 of the part that would just do
    assert verdict.drift == pytest.approx(0.09)
    assert verdict.reason == "accepted after backtracking"


def test_too_large_a_drift_is_given_up() -> None:
    verdict = _judge(_problem(), 0.2, backtracks=0)
    assert verdict.values is None
    assert verdict.reason == "drift 0.2 exceeds max_drift 0.1"


def test_without_a_limit_any_finite_loss_will_do() -> None:
    assert _judge(_problem(), 100.0, max_drift=None).scale == 1.0


def test_losses_that_are_not_finite_are_stepped_back_from() -> None:
    verdict = _judge(_problem(finite_below=1.05), 0.09, max_drift=None)
    assert verdict.values is not None
    assert verdict.scale == pytest.approx(0.1)


def test_losses_that_stay_not_finite_are_given_up() -> None:
    verdict = _judge(_problem(finite_below=1.0 + 1e-12), 1.0)
    assert verdict.values is None
    assert verdict.reason == "a loss is not finite"


@pytest.mark.parametrize(("step", "reason"), [(math.nan, "not finite"), (math.inf, "not finite"), (0.0, "zero")])
def test_displacements_that_are_none(step: float, reason: str) -> None:
    verdict = _judge(_problem(), step)
    assert verdict.values is None
    assert reason in verdict.reason


def test_the_parameters_are_never_touched() -> None:
    problem = _problem()
    for step in (0.05, 0.2, math.nan):
        _judge(problem, step)
    assert problem.shared[0].tolist() == [1.0]
