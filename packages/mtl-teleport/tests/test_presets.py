"""The paper's settings and the released code's: each piece by a number worked by hand, and the two named sets."""

from __future__ import annotations

import inspect
import math
import pydoc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem
from mtl_teleport import COST, AnyMeanConflict, Dense, DominatedConflict, LoRA, TeleportReport, presets
from mtl_teleport.history import modulated
from mtl_teleport.objective import Objective, balance_weights
from mtl_teleport.sharpness import Point, RandomSharpness

Make = Callable[..., tuple[Problem, Any]]
X = torch.zeros(1)
ONES = torch.ones(2, dtype=torch.float64)


class Lines(nn.Module):
    """Two shared numbers and one of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
        self.q = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
        self.head = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))


def _problem(losses: Callable[[Lines], list[Tensor]]) -> Problem:
    def stacked(model: Any, _: object) -> Tensor:
        return torch.stack([loss.sum() for loss in losses(model)])

    return Problem(Lines(), stacked, shared=["p", "q"], tasks=("a", "b"))


def _point(problem: Problem, balance: Tensor = ONES, seed: int = 0) -> Point:
    session = Dense().attach(problem)
    return Point.of(session, X, balance, generator=torch.Generator().manual_seed(seed))


class TestPieces:
    def test_noise_in_each_tensor_has_the_radius_in_each(self) -> None:
        # L_a = p, L_b = q: ε = (±0.1, ±0.1) in single numbers, so that each changes by 0.1 whatever is drawn.
        problem = _problem(lambda m: [m.p, m.q])
        sharpness = RandomSharpness(1, 0.1, norm="tensor", maximum="task")
        assert float(sharpness.estimate(_point(problem)).gain) == pytest.approx(1.0)

    def test_noise_moves_heads_only_where_it_is_on_all(self) -> None:
        # The loss is a head's own: without noise on it nothing changes; with, by 0.1 over 0.1.
        problem = _problem(lambda m: [m.head + 0.0 * m.p, 0.0 * m.q])
        gains = {}
        for noise in ("shared", "all"):
            sharpness = RandomSharpness(3, 0.1, norm="tensor", noise=noise, maximum="task")  # type: ignore[arg-type]
            gains[noise] = float(sharpness.estimate(_point(problem)).gain)
        assert gains["shared"] == pytest.approx(0.0, abs=1e-12)
        assert gains["all"] == pytest.approx(0.5)
        assert float(problem.model.head.detach()) == 0.0

    def test_the_largest_change_of_each_task_before_the_mean(self) -> None:
        # L_a = p and L_b = -p: their mean never changes, each by itself changes by 0.1.
        problem = _problem(lambda m: [m.p + 0.0 * m.q, -m.p])
        for maximum, expected in (("mean", 0.0), ("task", 1.0)):
            sharpness = RandomSharpness(4, 0.1, norm="tensor", maximum=maximum)  # type: ignore[arg-type]
            assert float(sharpness.estimate(_point(problem)).gain) == pytest.approx(expected, abs=1e-9)

    def test_each_task_has_its_own_largest_probe_with_its_weight(self) -> None:
        # ½p² and ½q² at (3, 4), one number each: the change is ±0.1·3 + 0.005 and ±0.1·4 + 0.005, largest with +.
        problem = _problem(lambda m: [0.5 * m.p.square(), 0.5 * m.q.square()])
        sharpness = RandomSharpness(40, 0.1, norm="tensor", maximum="task")
        balance = torch.tensor([0.5, 1.5], dtype=torch.float64)
        expected = (0.5 * 3.05 + 1.5 * 4.05) / 2
        assert float(sharpness.estimate(_point(problem, balance)).gain) == pytest.approx(expected)

    @pytest.mark.parametrize("route", ["estimate", "slopes"])
    def test_the_gradient_by_the_unperturbed_losses_only(self, route: str) -> None:
        # L_a = ½p², L_b = ½q²; with + as sign, ∂ gain = -½ (R_a p, R_b q) / 0.1 by the unperturbed part alone, and
        # ½ (R_a (p + 0.1) - R_a p, …) / 0.1 = ½ (R_a, R_b) by both.
        problem = _problem(lambda m: [0.5 * m.p.square(), 0.5 * m.q.square()])
        balance = torch.tensor([0.5, 1.5], dtype=torch.float64)
        for gradient, expected in (("unperturbed", [-7.5, -30.0]), ("both", [0.25, 0.75])):
            sharpness = RandomSharpness(40, 0.1, norm="tensor", maximum="task", gradient=gradient)  # type: ignore[arg-type]
            point = _point(problem, balance)
            if route == "slopes":
                found = sharpness.slopes(point).directions()[0]
            else:
                nothing, one = torch.zeros(2, dtype=torch.float64), torch.ones((), dtype=torch.float64)
                found = sharpness.estimate(point).gradient(nothing, one)
            assert found.tolist() == pytest.approx(expected)

    def test_ten_and_a_half(self) -> None:
        # Held at (8, 9), losses (9, 7) of L = (p², q + 3): L_t = (1 + 2)/2; one probe of length 0.1 per tensor.
        problem = _problem(lambda m: [m.p.square(), m.q + 3.0])
        sharpness = RandomSharpness(40, 0.1, norm="tensor", maximum="task")
        objective = Objective(sharpness, ONES, drift_weight=10.0, gain_weight=0.5, units="absolute")
        held = torch.tensor([8.0, 9.0], dtype=torch.float64)
        point = objective.point(Dense().attach(problem), X, generator=torch.Generator().manual_seed(0))
        # Gains: ((3.1)² - 9)/0.1 = 6.1 and 1: mean 3.55.
        assert float(objective(point, held).total) == pytest.approx(10.0 * 1.5 - 0.5 * 3.55)

    def test_the_released_weights(self) -> None:
        assert balance_weights(torch.tensor([3.0, 1.0]), form="released").tolist() == [0.5, 1.5]

    def test_betas_of_the_whole_group_and_their_bias_correction(self) -> None:
        """Adam by hand: σ = ½ in the second step, for a parameter that is not shared as well."""
        values = []
        shared, head = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
        other = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        adam = torch.optim.Adam([{"params": [shared, head]}, {"params": [other]}], lr=1.0, betas=(0.8, 0.5), eps=0.0)
        for sigma, g in ((1.0, 1.0), (0.5, 2.0)):
            for p in (shared, head, other):
                p.grad = torch.full_like(p, g)
            with modulated(adam, sigma, [shared], mode="betas"):
                adam.step()
            values.append([float(p.detach()) for p in (shared, head, other)])
        assert values[0] == pytest.approx([-1.0] * 3)
        # Scaled: β = (0.4, 0.25); v = 0.4·0.2 + 0.6·2, s = 0.25·0.5 + 0.75·4, corrected by 1 - 0.4² and 1 - 0.25².
        scaled = (0.4 * 0.2 + 0.6 * 2) / (1 - 0.4**2) / math.sqrt((0.25 * 0.5 + 0.75 * 4) / (1 - 0.25**2))
        plain = (0.8 * 0.2 + 0.2 * 2) / (1 - 0.8**2) / math.sqrt((0.5 * 0.5 + 0.5 * 4) / (1 - 0.5**2))
        assert values[1] == pytest.approx([-1 - scaled, -1 - scaled, -1 - plain])
        assert [group["betas"] for group in adam.param_groups] == [(0.8, 0.5)] * 2
        assert len(adam.param_groups) == 2

    @pytest.mark.parametrize("sigma", [0.0, -0.3])
    def test_the_whole_optimiser_is_reset_where_the_cosine_is_not_positive(self, sigma: float) -> None:
        shared, other = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
        adam = torch.optim.Adam([{"params": [shared]}, {"params": [other]}], lr=1.0, betas=(0.8, 0.5), eps=0.0)
        for s in (1.0, sigma):
            for p in (shared, other):
                p.grad = torch.full_like(p, 3.0)
            with modulated(adam, s, [shared], mode="betas"):
                adam.step()
        assert [float(adam.state[p]["step"]) for p in (shared, other)] == [1.0, 1.0]


class TestOwnStep:
    def _run(self, conflicting: Make, own_step: str, htr: str = "released") -> tuple[Any, Any, list[TeleportReport]]:
        problem, batch = conflicting()
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        cost = COST(trigger=lambda g: True, max_per_epoch=1, own_step=own_step, htr=htr, max_steps=4)  # type: ignore[arg-type]
        torch.manual_seed(0)
        mtl_core.step(problem, batch, optimizer, mtl_core_sum)
        before = [p.detach().clone() for p in problem.heads]
        state = {p: float(s["step"]) for p, s in optimizer.state.items()}
        cost.start_epoch(0)
        result = mtl_core.step(problem, batch, optimizer, cost)
        reports = [e for e in result.events if isinstance(e, TeleportReport)]
        self.heads_moved = any(not torch.equal(p, q) for p, q in zip(problem.heads, before, strict=True))
        self.steps_made = {float(s["step"]) - state[p] for p, s in optimizer.state.items()}
        self.cost, self.problem, self.batch, self.optimizer = cost, problem, batch, optimizer
        return result, optimizer, reports

    def test_skip_moves_the_shared_parameters_and_updates_nothing(self, conflicting: Make) -> None:
        result, _, (report,) = self._run(conflicting, "skip")
        assert report.accepted
        assert report.kept == pytest.approx(1.0, abs=1e-2)
        assert not self.heads_moved
        assert self.steps_made == {0.0}
        assert result.losses.shape == (2,)
        assert all(p.grad is None for p in self.problem.model.parameters())

    def test_update_goes_on(self, conflicting: Make) -> None:
        _, _, (report,) = self._run(conflicting, "update")
        assert report.accepted
        assert self.heads_moved

    @pytest.mark.parametrize("loaded", [False, True])
    def test_the_next_update_reuses_the_memory(self, conflicting: Make, loaded: bool) -> None:
        """By a reset the shared parameters count their steps anew, also after a break between the two."""
        self._run(conflicting, "skip", htr="reset")
        cost = self.cost
        if loaded:
            cost = COST(trigger=lambda g: True, max_per_epoch=1, own_step="skip", htr="reset", max_steps=4)
            cost.load_state_dict(self.cost.state_dict())
        mtl_core.step(self.problem, self.batch, self.optimizer, cost)
        shared = [float(self.optimizer.state[p]["step"]) for p in self.problem.shared]
        heads = [float(self.optimizer.state[p]["step"]) for p in self.problem.heads]
        assert set(shared) == {1.0}
        assert set(heads) == {2.0}
        mtl_core.step(self.problem, self.batch, self.optimizer, cost)
        assert {float(self.optimizer.state[p]["step"]) for p in self.problem.shared} == {2.0}


def mtl_core_sum(jacobian: Tensor) -> Tensor:
    return jacobian.sum(0)


RELEASED = {
    "max_probe_batches": None,
    "reference": "loader",
    "rounds": 2,
    "max_steps": None,
    "search": "penalty",
    "balance": "released",
    "units": "absolute",
    "drift_weight": 10.0,
    "gain_weight": 0.5,
    "conflict_weight": 0.0,
    "aim": None,
    "max_drift": None,
    "backtracks": 0,
    "mode": "eval",
    "htr": "betas",
    "own_step": "skip",
    "lr": None,
}
PAPER = {
    **RELEASED,
    "reference": "batch",
    "balance": "paper",
    "drift_weight": 1.0,
    "gain_weight": 0.05,
    "htr": "paper",
    "own_step": "update",
}


class TestPresets:
    def test_every_released_setting(self) -> None:
        loader = [1, 2]
        cost = COST.released(probe_batches=loader)
        assert {name: getattr(cost, name) for name in RELEASED} == RELEASED
        sharpness = cost.sharpness
        assert isinstance(sharpness, RandomSharpness)
        found = (sharpness.probes, sharpness.radius, sharpness.norm, sharpness.noise, sharpness.maximum)
        assert found == (5, 1e-4, "tensor", "all", "task")
        assert sharpness.gradient == "unperturbed"
        assert isinstance(cost.trigger, AnyMeanConflict)
        assert (cost.schedule.start_after, cost.schedule.max_per_epoch) == (50, 1)
        assert isinstance(cost.adapter, LoRA)
        assert cost.adapter.rank == 5
        assert cost.probe_batches is loader

    def test_every_setting_of_the_paper(self) -> None:
        cost = COST.paper()
        assert {name: getattr(cost, name) for name in PAPER} == PAPER
        sharpness = cost.sharpness
        assert isinstance(sharpness, RandomSharpness)
        found = (sharpness.probes, sharpness.radius, sharpness.norm, sharpness.noise, sharpness.maximum)
        assert found == (5, 1e-4, "global", "shared", "mean")
        assert sharpness.gradient == "both"
        assert isinstance(cost.trigger, DominatedConflict)

    @pytest.mark.parametrize("preset", ["paper", "released"])
    def test_every_setting_of_cost_is_fixed_by_it_or_given_to_it(self, preset: str) -> None:
        """A new setting must be thought of here."""
        text = inspect.getsource(getattr(COST, preset)).partition("return cls(")[2]
        unset = {
            name
            for name in inspect.signature(COST).parameters
            if f"{name}=" not in text and name not in presets._BOTH and name not in ("method", "lr", "conflict_weight")
        }
        assert unset == set()

    def test_help_shows_both(self) -> None:
        text = pydoc.render_doc(COST, renderer=pydoc.plaintext)
        for piece in (
            "paper(",
            "released(",
            'probe_noise="all"',
            'own_step="skip"',
            'reference="batch"',
            'htr="betas"',
        ):
            assert piece in text

    @pytest.mark.parametrize("preset", ["paper", "released"])
    def test_a_teleport(self, preset: str, conflicting: Make) -> None:
        problem, batch = conflicting()
        problem.model.eval()
        halves = [tuple(t[:16] for t in batch), tuple(t[16:] for t in batch)]
        make = COST.paper if preset == "paper" else COST.released
        cost = make(probe_batches=halves, trigger=lambda g: True, start_after=0, max_per_epoch=None)
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
        (report,) = mtl_core.step(problem, batch, optimizer, cost).events
        assert isinstance(report, TeleportReport)
        assert report.accepted
        assert report.adapter_steps == 4  # two rounds of two batches
        # Per batch: one before; per step one evaluation and five perturbed ones, and with a gradient through the
        # largest of those one more; per batch one for the verdict.
        assert report.forwards == 2 + 4 * (7 if preset == "paper" else 6) + 2
        assert report.backwards == 4 * (2 if preset == "paper" else 1)
