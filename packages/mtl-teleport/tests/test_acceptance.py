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


class Levels(nn.Module):
    """Two numbers that are losses themselves, at any size."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, 1.0], dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 2e-6),
        (torch.float16, 1e-5),
        (torch.float16, 4e4),
        (torch.bfloat16, 1e-38),
        (torch.bfloat16, 3e38),
        (torch.float32, 1e-43),
        (torch.float32, 3e38),
        (torch.float64, 1e-321),
        (torch.float64, 1.2e308),
    ],
)
def test_drift_is_relative_at_any_size_that_losses_have(dtype: torch.dtype, size: float) -> None:
    """The mean of two losses overflowed, or a thousandth of it vanished: then halving both was no drift at all."""
    model = Levels(dtype)
    problem = Problem(model, lambda m, _: m.x * size, shared=model, tasks=("a", "b"))
    own = probe_losses(problem, (X,))
    search = Search(problem, (X,), own, torch.zeros(2, 2), torch.Generator())
    verdict = judge(search, {"x": torch.full((2,), -0.5, dtype=dtype)}, max_drift=0.1, backtracks=0)
    assert verdict.values is None
    assert verdict.drift == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_rounding_takes_away_is_no_move(dtype: torch.dtype) -> None:
    """It was accepted, with a length of 0."""
    model = Levels(dtype)
    problem = Problem(model, lambda m, _: m.x * 2, shared=model, tasks=("a", "b"))
    search = Search(problem, (X,), probe_losses(problem, (X,)), torch.zeros(2, 2), torch.Generator())
    step = torch.finfo(dtype).eps / 4
    verdict = judge(search, {"x": torch.full((2,), step, dtype=torch.float64)}, max_drift=None, backtracks=3)
    assert verdict.values is None
    assert verdict.reason == "the displacement is below the rounding of the parameters"
    one = judge(search, {"x": torch.tensor([step, 8 * step], dtype=torch.float64)}, max_drift=None, backtracks=3)
    assert one.values is not None


def test_shortened_to_nothing_is_no_move() -> None:
    model = Levels(torch.bfloat16)
    problem = Problem(model, lambda m, _: m.x * 2, shared=model, tasks=("a", "b"))
    search = Search(problem, (X,), probe_losses(problem, (X,)), torch.zeros(2, 2), torch.Generator())
    verdict = judge(search, {"x": torch.full((2,), 0.01)}, max_drift=1e-4, backtracks=6)
    assert (verdict.values, verdict.scale) == (None, 0.0)
    assert verdict.reason == "the displacement is below the rounding of the parameters"
