"""What an adapter may climb besides the gradient norm: by hand, against central differences, and in a search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, InvalidParameterError, Problem, step
from mtl_core.extension import FixedWeights
from mtl_teleport import COST, Always, Dense, LoRA, PeftLoRA, TeleportReport
from mtl_teleport.adapters import Adapter, AdapterSession
from mtl_teleport.next_step import NextStep, next_step
from mtl_teleport.search_context import Search
from mtl_teleport.sharpness import AscentSharpness, Flatness, LookAhead, NewtonSharpness, Point, Sharpness

R = torch.tensor([0.5, 1.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.7, 0.2], dtype=torch.float64)


def network() -> tuple[Problem, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    return Problem(net, lambda m, b: (m(b) - b[:, :2]).square().mean(0), shared=net[0], tasks=("a", "b")), x


def opened(adapter: Adapter, problem: Problem) -> AdapterSession:
    _, x = network()
    session = adapter.attach(problem, batch=x, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in session.trainable:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return session


def looking_ahead(problem: Problem, x: Tensor, *, horizon: float = 3.0, scales: bool = True) -> Sharpness:
    coming = NextStep(
        0.05,
        WEIGHTS,
        {"0.weight": torch.linspace(0.5, 2.0, 12, dtype=torch.float64).view(4, 3)} if scales else {},
    )
    search = Search(
        problem,
        (x,),
        (problem.losses(x).values.detach(),),
        torch.eye(2, dtype=torch.float64),
        torch.Generator(),
        next_step=lambda: coming,
    )
    return LookAhead(horizon).for_search(search)


def numerical(value: Callable[[], float], session: AdapterSession) -> Tensor:
    found = []
    for tensor in session.trainable:
        with torch.no_grad():
            for k in range(tensor.numel()):
                old = float(tensor.view(-1)[k])
                ends = []
                for sign in (1.0, -1.0):
                    tensor.view(-1)[k] = old + sign * 1e-5
                    with torch.enable_grad():
                        ends.append(value())
                tensor.view(-1)[k] = old
                found.append((ends[0] - ends[1]) / 2e-5)
    return torch.tensor(found, dtype=torch.float64)


def upward(sharpness: Sharpness, session: AdapterSession, x: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative by the two ways that a search may ask for it."""
    one = torch.ones((), dtype=torch.float64)
    estimated = sharpness.estimate(Point.of(session, x, R)).gradient(torch.zeros(2, dtype=torch.float64), one)
    return estimated, sharpness.slopes(Point.of(session, x, R)).directions()[0]


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2), PeftLoRA(rank=2)], ids=str)
@pytest.mark.parametrize("scales", [True, False])
def test_look_ahead_is_differentiated_through_the_step(adapter: Adapter, scales: bool) -> None:
    problem, x = network()
    sharpness = looking_ahead(problem, x, scales=scales)
    with opened(adapter, problem) as session:
        expected = numerical(lambda: float(sharpness.estimate(Point.of(session, x, R)).gain), session)
        for found in upward(sharpness, session, x):
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_look_ahead_adds_the_losses_where_both_are_asked_for() -> None:
    problem, x = network()
    sharpness = looking_ahead(problem, x)
    by_loss = torch.tensor([2.0, -0.5], dtype=torch.float64)
    with opened(LoRA(rank=2), problem) as session:
        point = Point.of(session, x, R)
        both = sharpness.estimate(point).gradient(by_loss, torch.tensor(3.0, dtype=torch.float64))
        alone = upward(sharpness, session, x)[0]
        losses = Point.of(session, x, R)
        assert torch.allclose(both, 3.0 * alone + losses.by_adapter(losses.combination(by_loss)))


def test_look_ahead_by_hand() -> None:
    """Losses x² and 4 x² at x = 2 with weights 1 and 0.5 and a rate of 0.1: x → 2 - 0.1 (4 + 0.5 · 16) = 0.8."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    problem = Problem(
        model, lambda m, b: torch.stack([m(b).sum() ** 2, 4 * m(b).sum() ** 2]), shared=model, tasks=("a", "b")
    )
    x = torch.ones(1, 1, dtype=torch.float64)
    coming = NextStep(0.1, torch.tensor([1.0, 0.5], dtype=torch.float64))
    search = Search(
        problem,
        (x,),
        (torch.tensor([4.0, 16.0], dtype=torch.float64),),
        torch.eye(2),
        torch.Generator(),
        next_step=lambda: coming,
    )
    with Dense().attach(problem) as session:
        gain = LookAhead(1.0).for_search(search).estimate(Point.of(session, x, R)).gain
    assert float(gain) == pytest.approx(1.0 - 0.8**2 / 4.0)  # both fall by the same share


def test_next_step_is_what_the_optimiser_makes_of_a_gradient() -> None:
    """Without momentum, and with the second moment as it is, Adam's step is lr · P · g."""
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.0, 0.9))
    for value in ([1.0, 2.0], [3.0, 1.0]):
        parameter.grad = torch.tensor(value, dtype=torch.float64)
        adam.step()
    coming = next_step({"w": parameter}, torch.tensor([1.0, 3.0]), 2, 0.1, adam)
    assert coming is not None
    assert coming.weights.tolist() == [1.0, 3.0]
    # Squares 0.1 · 0.9 · g₁² + 0.1 g₂² over 1 - 0.9²
    expected = [1.0 / (math.sqrt((0.09 * a * a + 0.1 * b * b) / 0.19) + 1e-8) for a, b in ((1.0, 3.0), (2.0, 1.0))]
    assert coming.scales["w"].tolist() == pytest.approx(expected)
    assert next_step({"w": parameter}, None, 4, None, adam) is None
    plain = next_step({"w": parameter}, None, 4, 0.1, torch.optim.SGD([parameter], lr=0.1))
    assert plain is not None
    assert (plain.weights.tolist(), dict(plain.scales)) == ([0.25] * 4, {})
    grouped = next_step({"w": parameter}, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2, 0.1, None)
    assert grouped is not None
    assert grouped.weights.tolist() == [0.5, 0.5]


def test_newton_of_a_quadratic_by_hand() -> None:
    """½ h x² has the slope h x and the curvature h: (h x)² / (h + 0.1 h), whatever the radius."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(3.0)
    problem = Problem(model, lambda m, b: 2.0 * m(b).sum().square()[None], shared=model, tasks=("a",))
    x = torch.ones(1, 1, dtype=torch.float64)
    for radius in (0.05, 1.0):
        sharpness = NewtonSharpness(radius)
        with Dense().attach(problem) as session:
            one = torch.ones(1, dtype=torch.float64)
            point = Point.of(session, x, one)
            assert float(sharpness.estimate(point).gain) == pytest.approx(4.0 * 9.0 / 1.1)
            # d/dx of h x² / 1.1 = 2 h x / 1.1
            found = sharpness.slopes(Point.of(session, x, one)).directions()[0]
            assert found.tolist() == pytest.approx([2.0 * 4.0 * 3.0 / 1.1])


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2), PeftLoRA(rank=2)], ids=str)
@pytest.mark.parametrize("radius", [0.05, 0.5])
def test_newton_is_differentiated_through_the_direction(adapter: Adapter, radius: float) -> None:
    problem, x = network()
    sharpness = NewtonSharpness(radius)
    with opened(adapter, problem) as session:
        size = float(sharpness.estimate(Point.of(session, x, R)).gain)  # sets the floor
        expected = numerical(lambda: float(sharpness.estimate(Point.of(session, x, R)).gain), session)
        for found in upward(sharpness, session, x):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * size)


def test_newton_gains_nothing_from_negative_curvature() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    problem = Problem(model, lambda m, b: 5.0 - m(b).sum().square()[None], shared=model, tasks=("a",))
    x, one = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    with Dense().attach(problem) as session:
        sharpness = NewtonSharpness(0.1)
        # Slope 2, curvature -2: the floor alone, a tenth of its size.
        assert float(sharpness.estimate(Point.of(session, x, one)).gain) == pytest.approx(4.0 / 0.2)


def test_the_floor_is_that_of_one_search() -> None:
    problem, x = network()
    first = NewtonSharpness(0.1)
    search = Search(problem, (x,), (problem.losses(x).values.detach(),), torch.eye(2), torch.Generator())
    with opened(Dense(), problem) as session:
        first.estimate(Point.of(session, x, R))
        assert first._floor is not None
        again = first.for_search(search)
        assert isinstance(again, NewtonSharpness)
        assert (again.radius, again._floor) == (0.1, None)


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2), PeftLoRA(rank=2)], ids=str)
def test_flatness_is_sharpness_with_the_other_sign(adapter: Adapter) -> None:
    problem, x = network()
    with opened(adapter, problem) as session:
        sharp, flat = AscentSharpness(0.2), Flatness(0.2)
        assert float(flat.estimate(Point.of(session, x, R)).gain) == -float(
            sharp.estimate(Point.of(session, x, R)).gain
        )
        for up, down in zip(upward(sharp, session, x), upward(flat, session, x), strict=True):
            assert torch.allclose(down, -up)


class Trained:
    """A small network that was trained for a while, and one teleport of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.x = torch.randn(64, 4, dtype=torch.float64)
        self.problem = Problem(
            self.model, lambda m, b: (m(b) - b[:, :2].cumsum(1)).square().mean(0), shared=self.model, tasks=("a", "b")
        )
        self.adam = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        for _ in range(20):
            step(self.problem, self.x, self.adam, FixedWeights())

    def teleport(self, **settings: Any) -> TeleportReport:
        cost = COST(trigger=Always(), max_per_epoch=None, aim=None, lr=1e-2, **settings)
        (report,) = step(self.problem, self.x, self.adam, cost).events
        assert isinstance(report, TeleportReport)
        return report


@pytest.mark.parametrize("kind", ["newton", "look-ahead", "flat"])
@pytest.mark.parametrize("search", ["projected", "penalty"])
def test_a_search_raises_it_at_equal_losses(kind: str, search: str) -> None:
    report = Trained().teleport(sharpness=kind, search=search)
    assert report.accepted
    assert report.drift <= 0.02
    growth = [value for value in report.search_growth if not math.isnan(value)]
    assert growth[0] == (-1.0 if kind == "flat" else 1.0)
    assert max(growth) > growth[0] + (0.2 if search == "projected" else 0.01)
    if kind == "flat":
        assert report.mean_norm_after is not None
        assert report.mean_norm_after < report.mean_norm_before


def test_a_look_ahead_that_has_not_grown_is_dropped() -> None:
    """Nothing but L_t is minimised, which is 0: the adapter stays where it is."""
    report = Trained().teleport(sharpness="look-ahead", search="penalty", gain_weight=0.0)
    assert not report.accepted
    assert report.reason == "LookAhead has not grown"
    assert report.length == 0.0


def conflicting(**settings: Any) -> TeleportReport:
    """From a state in which the second task conflicts with the mean."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(64, 4, dtype=torch.float64)
    wanted = torch.stack([x[:, 0] * x[:, 1], x[:, 2] - x[:, 1]], 1)
    problem = Problem(
        model, lambda m, b: (m(b) - wanted).square().mean(0), shared=[*model[0].parameters()], tasks=("a", "b")
    )
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        step(problem, x, adam, FixedWeights())
    cost = COST(trigger=Always(), max_per_epoch=None, aim=None, lr=3e-3, max_steps=10, **settings)
    (report,) = step(problem, x, torch.optim.SGD(model.parameters(), lr=1e-3), cost).events
    assert isinstance(report, TeleportReport)
    return report


def test_conflict_alone_is_lowered_where_the_sharpness_is_held() -> None:
    held = conflicting(conflict_weight=1.0, hold_sharpness=True)
    free = conflicting(conflict_weight=1.0)
    for report in (held, free):
        assert report.cosines_before[1] < 0
        assert report.cosines_after is not None
        assert report.cosines_after[1] > 0
    # Held to first order: what is left is the curvature of ten steps.
    assert abs(held.search_growth[-1] - 1.0) < 0.1 * abs(free.search_growth[-1] - 1.0)


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(InvalidParameterError, match="`horizon`"):
        COST(sharpness="look-ahead", horizon=0.0)
    with pytest.raises(InvalidParameterError, match="`radius` must be None for sharpness='look-ahead'"):
        COST(sharpness="look-ahead", radius=0.1)
    with pytest.raises(InvalidParameterError, match=r"`hold_sharpness` must come with .* got search='projected'"):
        COST(hold_sharpness=True)
    with pytest.raises(InvalidParameterError, match="got search='penalty' and conflict_weight=1"):
        COST(hold_sharpness=True, conflict_weight=1.0, search="penalty")


def test_a_look_ahead_needs_to_know_the_step() -> None:
    problem, x = network()
    cost = COST(sharpness="look-ahead", lr=0.1, trigger=Always(), max_per_epoch=None)
    from mtl_core.extension import collect_batch

    before = [p.detach().clone() for p in problem.shared]
    with pytest.raises(InvalidInputError, match="tries the next step"):
        cost.teleport(problem, [x], collect_batch(problem, x))
    assert all(torch.equal(p, q) for p, q in zip(problem.shared, before, strict=True))
    assert cost.teleport(problem, [x], collect_batch(problem, x), lr=0.1).adapter_steps > 0
