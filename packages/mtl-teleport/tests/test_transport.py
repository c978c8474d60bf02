"""The optimiser's averages carried along a move."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, InvalidParameterError, Problem, step
from mtl_core.extension import FixedWeights
from mtl_teleport import COST, Always, MemoryOnly, RandomTeleport, TeleportReport, modulated


def stepped(optimizer: torch.optim.Optimizer, parameter: Tensor, *gradients: float) -> None:
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()


def test_adams_averages_by_hand() -> None:
    """After two steps with gradients 1 and 2, β = (0.5, 0.5): v = 0.25 + 1, s = 0.25 + 2, both over 0.75."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.5, 0.5))
    stepped(adam, parameter, 1.0, 2.0)
    state = adam.state[parameter]
    assert (float(state["exp_avg"]), float(state["exp_avg_sq"])) == (1.25, 2.25)
    changes = [(torch.full((1,), 1.0, dtype=torch.float64), torch.full((1,), 3.0, dtype=torch.float64))]
    parameter.grad = torch.zeros(1, dtype=torch.float64)
    with modulated(adam, -0.4, [parameter], mode="transported", changes=changes):
        adam.step()
    # v̂ = 1.25 / 0.75 gains 2; ŝ = 3 is multiplied by (3 + 9) / (3 + 1); the step with g = 0 then halves both.
    assert float(state["exp_avg"]) == pytest.approx(0.5 * (1.25 + 2.0 * 0.75))
    assert float(state["exp_avg_sq"]) == pytest.approx(0.5 * (2.25 * 3.0))


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_momentum_of_a_constant_gradient_becomes_that_of_the_other(dampening: float) -> None:
    """Long after the start a buffer of constant gradients g is g (1 - d) / (1 - μ)."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=0.1, momentum=0.5, dampening=dampening)
    stepped(sgd, parameter, *[2.0] * 80)
    changes = [(torch.full((1,), 2.0, dtype=torch.float64), torch.full((1,), -1.0, dtype=torch.float64))]
    parameter.grad = torch.full((1,), -1.0, dtype=torch.float64)
    with modulated(sgd, 1.0, [parameter], mode="transported", changes=changes):
        sgd.step()
    assert float(sgd.state[parameter]["momentum_buffer"]) == pytest.approx(-(1.0 - dampening) / 0.5)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SGD", "RMSprop", "Adagrad"])
def test_no_change_of_the_gradient_is_no_change_of_the_step(optimizer: str) -> None:
    found = []
    for mode in ("keep", "transported"):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        settings: dict[str, Any] = {"momentum": 0.9} if optimizer in ("SGD", "RMSprop") else {}
        made = getattr(torch.optim, optimizer)([parameter], lr=0.1, **settings)
        stepped(made, parameter, 1.0, 2.0, -0.5)
        same = torch.tensor([0.3, 0.0], dtype=torch.float64)
        parameter.grad = torch.ones_like(parameter)
        with modulated(made, 0.2, [parameter], mode=mode, changes=[(same, same.clone())]):  # type: ignore[arg-type]
            made.step()
        found.append(parameter.detach().clone())
    assert torch.allclose(*found, rtol=1e-14, atol=0)


def test_an_error_puts_the_averages_back() -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    adam = torch.optim.Adam([parameter], lr=0.1)
    stepped(adam, parameter, 1.0)
    before = {k: v.clone() for k, v in adam.state[parameter].items()}
    changes = [(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))]

    def fails(*_: object) -> None:
        assert not torch.equal(adam.state[parameter]["exp_avg"], before["exp_avg"])
        raise RuntimeError("stop")

    def within() -> None:
        with modulated(adam, 1.0, [parameter], mode="transported", changes=changes):
            adam.register_step_pre_hook(fails)  # runs after the hook that carries the averages
            adam.step()

    with pytest.raises(RuntimeError, match="stop"):
        within()
    for key, value in before.items():
        assert torch.equal(adam.state[parameter][key], value)


def test_changes_must_be_given() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([parameter])
    with (
        pytest.raises(InvalidInputError, match=r"gradients of each of 1 parameters .* got none"),
        modulated(adam, 0.5, [parameter], mode="transported"),
    ):
        pass
    with (
        pytest.raises(InvalidInputError, match="got 2"),
        modulated(adam, 0.5, [parameter], mode="transported", changes=[(parameter, parameter)] * 2),
    ):
        pass


class Small:
    def __init__(self, optimizer: str = "Adam") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.x = torch.randn(32, 4, dtype=torch.float64)
        self.problem = Problem(
            self.model, lambda m, b: (m(b) - b[:, :2].cumsum(1)).square().mean(0), shared=self.model, tasks=("a", "b")
        )
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), lr=1e-2)

    def train(self, method: Any, steps: int) -> list[Any]:
        return [e for _ in range(steps) for e in step(self.problem, self.x, self.optimizer, method).events]


def test_a_teleport_carries_by_the_gradients_on_the_probes() -> None:
    """The change that reaches the optimiser is that of the weighted loss, worked out here by autograd."""
    small = Small()
    small.train(FixedWeights(), 5)
    method = RandomTeleport(FixedWeights(), length=0.3, trigger=Always(), max_per_epoch=None, htr="transported")
    names = list(small.problem.named_shared)

    def gradient() -> list[Tensor]:
        loss = small.problem.losses(small.x).values.sum()
        return list(torch.autograd.grad(loss, list(small.problem.shared)))

    before, old = gradient(), {k: v["exp_avg"].clone() for k, v in small.optimizer.state.items()}
    moved: dict[str, Any] = {}
    original = method._changed

    def watched(*arguments: Any) -> Any:
        moved["change"] = original(*arguments)
        moved["values"] = {k: v.clone() for k, v in arguments[2].items()}
        return moved["change"]

    method._changed = watched  # type: ignore[method-assign]
    (report,) = small.train(method, 1)
    assert isinstance(report, TeleportReport)
    for k, name in enumerate(names):
        assert torch.allclose(moved["change"][name][0], before[k], rtol=1e-9)
    with torch.no_grad():
        for name, parameter in small.problem.named_shared.items():
            parameter.copy_(moved["values"][name])
    after = gradient()
    for k, name in enumerate(names):
        assert torch.allclose(moved["change"][name][1], after[k], rtol=1e-9)
        parameter = small.problem.shared[k]
        corrected = 1.0 - 0.9**5
        # One step with the gradient at the new point follows, which is the same there.
        expected = 0.9 * (old[parameter] + corrected * (after[k] - before[k])) + 0.1 * after[k]
        assert torch.allclose(small.optimizer.state[parameter]["exp_avg"], expected, rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("own_step", ["update", "skip"])
def test_cost_trains_with_it_and_goes_on_from_its_state(optimizer: str, own_step: Any) -> None:
    def method() -> COST:
        return COST(
            FixedWeights(),
            trigger=Always(),
            max_per_epoch=None,
            htr="transported",
            own_step=own_step,
            max_steps=3,
            lr=1e-2,
        )

    whole, parts = Small(optimizer), Small(optimizer)
    whole.train(method(), 4)
    first = method()
    parts.train(first, 2)
    second = method()
    second.load_state_dict(first.state_dict())
    parts.train(second, 2)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert bool(torch.isfinite(a).all())


@pytest.mark.parametrize("htr", ["released", "reset", "keep", "paper"])
def test_memory_alone_is_the_method_but_at_its_steps(htr: Any) -> None:
    plain, only = Small(), Small()
    plain.train(FixedWeights(), 3)
    only.train(MemoryOnly(FixedWeights(), steps=[7], sigmas=[-0.2], htr=htr), 3)
    for a, b in zip(plain.model.parameters(), only.model.parameters(), strict=True):
        assert torch.equal(a, b)
    method = MemoryOnly(FixedWeights(), steps=[1], sigmas=[-0.2], htr=htr)
    events = only.train(method, 3)
    assert [(e.kind, e.step, e.sigma) for e in events] == [("memory", 1, -0.2)]
    assert events[0].as_dict() == {"kind": "memory", "step": 1, "sigma": -0.2}
    plain.train(FixedWeights(), 1)
    with modulated(plain.optimizer, -0.2, plain.problem.shared, mode=htr):
        plain.train(FixedWeights(), 1)
    plain.train(FixedWeights(), 1)
    for a, b in zip(plain.model.parameters(), only.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_memory_alone_goes_on_from_its_state() -> None:
    whole, parts = Small(), Small()
    settings: dict[str, Any] = {"steps": [1, 3], "sigmas": [-1.0, 0.5]}
    whole.train(MemoryOnly(FixedWeights(), **settings), 5)
    first = MemoryOnly(FixedWeights(), **settings)
    parts.train(first, 2)
    second = MemoryOnly(FixedWeights(), **settings)
    second.load_state_dict(first.state_dict())
    assert len(parts.train(second, 3)) == 1
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": [1], "sigmas": []}, "one cosine for each"),
        ({"steps": [1, 1], "sigmas": [0.0, 0.0]}, "1 of them different"),
        ({"steps": [-1], "sigmas": [0.0]}, "`steps` must be a whole number"),
        ({"steps": [1], "sigmas": [math.nan]}, "`sigmas`"),
        ({"steps": [1], "sigmas": [1.5]}, "`sigmas`"),
        ({"steps": [1], "sigmas": [0.0], "htr": "transported"}, "`htr` must be one of"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidInputError, InvalidParameterError), match=message):
        MemoryOnly(**settings)
