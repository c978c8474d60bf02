from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidParameterError
from mtl_teleport.history import modulated, trajectory_cosine

BETA1, BETA2, LR, EPS = 0.9, 0.99, 0.1, 1e-8


def _parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def _run(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


GRADIENTS = [torch.tensor(g, dtype=torch.float64) for g in ([1.0, -2.0], [0.5, 1.0], [-1.0, 3.0], [2.0, 0.25])]


class TestTrajectoryCosine:
    def test_hand_worked(self) -> None:
        delta = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0])}
        gradient = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0])}
        assert trajectory_cosine(delta, gradient) == pytest.approx(0.5)

    def test_unmoved_parameters_count_in_the_gradient_only(self) -> None:
        assert trajectory_cosine(
            {"a": torch.tensor([3.0])}, {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
        ) == pytest.approx(1 / math.sqrt(2))

    def test_nothing_moved_keeps_everything(self) -> None:
        assert trajectory_cosine({}, {"a": torch.ones(2)}) == 1.0

    def test_no_gradient_says_nothing(self) -> None:
        assert trajectory_cosine({"a": torch.ones(2)}, {"a": torch.zeros(2)}) == 0.0


class TestAdam:
    """Against equation 13 by hand, with unbiased moments."""

    @pytest.mark.parametrize("sigma", [0.0, 0.3, 0.99, -0.4])
    @pytest.mark.parametrize("steps", [1, 3])
    def test_update_is_equation_13_without_bias(self, sigma: float, steps: int) -> None:
        p = _parameter(0.0, 0.0)
        optimizer = torch.optim.Adam([p], lr=LR, betas=(BETA1, BETA2), eps=EPS)
        _run(optimizer, p, GRADIENTS[:steps])
        v, s = optimizer.state[p]["exp_avg"].clone(), optimizer.state[p]["exp_avg_sq"].clone()
        before, g, t = p.detach().clone(), GRADIENTS[3], steps + 1
        positive = max(sigma, 0.0)
        v = sigma * BETA1 * v + (1 - sigma * BETA1) * g
        s = positive * BETA2 * s + (1 - positive * BETA2) * g * g
        # The weights of the averages sum to 1 - sigma * beta^t, whatever t: that is what they are divided by.
        unbiased_v, unbiased_s = v / (1 - sigma * BETA1**t), s / (1 - positive * BETA2**t)
        p.grad = g.clone()
        with modulated(optimizer, sigma, [p]):
            optimizer.step()
        torch.testing.assert_close(p.detach(), before - LR * unbiased_v / (unbiased_s.sqrt() + EPS))

    @pytest.mark.parametrize("sigma", [0.0, 0.5, -0.4])
    def test_later_steps_are_unbiased_too(self, sigma: float) -> None:
        # An unbiased average of a constant is that constant, in the modulated step and in each one after it.
        p = _parameter(0.0)
        optimizer = torch.optim.Adam([p], lr=LR, betas=(BETA1, BETA2))
        constant = torch.tensor([3.0], dtype=torch.float64)
        _run(optimizer, p, [constant] * 2)
        p.grad = constant.clone()
        with modulated(optimizer, sigma, [p]):
            optimizer.step()
        for _ in range(3):
            state, t = optimizer.state[p], float(optimizer.state[p]["step"])
            torch.testing.assert_close(state["exp_avg"] / (1 - BETA1**t), constant)
            torch.testing.assert_close(state["exp_avg_sq"] / (1 - BETA2**t), constant**2)
            _run(optimizer, p, [constant])

    def test_for_late_steps_the_memory_is_equation_13(self) -> None:
        p = _parameter(0.0, 0.0)
        optimizer = torch.optim.Adam([p], lr=LR, betas=(BETA1, BETA2))
        _run(optimizer, p, GRADIENTS)
        state = optimizer.state[p]
        state["step"].fill_(10_000)
        v, g, sigma = state["exp_avg"].clone(), GRADIENTS[0], 0.6
        p.grad = g.clone()
        with modulated(optimizer, sigma, [p]):
            optimizer.step()
        torch.testing.assert_close(state["exp_avg"], sigma * BETA1 * v + (1 - sigma * BETA1) * g)

    def test_coupled_decay_and_maximize_enter_as_in_the_step(self) -> None:
        # sigma = 0 forgets all: v and s are of the effective gradient alone, so the update is lr * sign.
        p = _parameter(2.0, -3.0)
        optimizer = torch.optim.Adam([p], lr=LR, betas=(BETA1, BETA2), weight_decay=0.3, maximize=True, eps=0.0)
        _run(optimizer, p, GRADIENTS[:2])
        before, g = p.detach().clone(), GRADIENTS[2]
        p.grad = g.clone()
        with modulated(optimizer, 0.0, [p]):
            optimizer.step()
        torch.testing.assert_close(p.detach(), before - LR * torch.sign(-g + 0.3 * before))

    def test_decoupled_decay_stays_out_of_the_averages(self) -> None:
        p = _parameter(2.0, -3.0)
        optimizer = torch.optim.AdamW([p], lr=LR, betas=(BETA1, BETA2), weight_decay=0.5, eps=0.0)
        _run(optimizer, p, GRADIENTS[:2])
        before, g = p.detach().clone(), GRADIENTS[2]
        p.grad = g.clone()
        with modulated(optimizer, 0.0, [p]):
            optimizer.step()
        torch.testing.assert_close(p.detach(), before * (1 - LR * 0.5) - LR * torch.sign(g))

    def test_betas_and_groups_are_never_touched(self) -> None:
        p, q = _parameter(0.0), _parameter(0.0)
        optimizer = torch.optim.Adam([p, q], lr=LR, betas=(BETA1, BETA2))
        group = optimizer.param_groups[0]
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
        with modulated(optimizer, 0.2, [p]):
            optimizer.step()
            assert optimizer.param_groups[0] is group
        assert len(optimizer.param_groups) == 1
        assert group["betas"] == (BETA1, BETA2)
        assert [id(x) for x in group["params"]] == [id(p), id(q)]


def _optimizers() -> list[tuple[str, Any]]:
    return [
        ("Adam", lambda ps: torch.optim.Adam(ps, lr=LR)),
        ("AdamAMSGrad", lambda ps: torch.optim.Adam(ps, lr=LR, amsgrad=True)),
        ("AdamW", lambda ps: torch.optim.AdamW(ps, lr=LR)),
        ("NAdam", lambda ps: torch.optim.NAdam(ps, lr=LR)),
        ("RAdam", lambda ps: torch.optim.RAdam(ps, lr=LR)),
        ("Adamax", lambda ps: torch.optim.Adamax(ps, lr=LR)),
        ("SGD", lambda ps: torch.optim.SGD(ps, lr=LR, momentum=0.9)),
        ("RMSprop", lambda ps: torch.optim.RMSprop(ps, lr=LR, momentum=0.9)),
        ("Lion", lambda ps: Lion(ps)),
        ("HeavyBall", lambda ps: HeavyBall(ps)),
    ]


class Lion(torch.optim.Optimizer):
    """Sign descent with two averages, as a stand-in for optimisers that are not torch's own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.tanh(beta1 * m + (1 - beta1) * p.grad))
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class HeavyBall(torch.optim.Optimizer):
    """Momentum that skips its buffer when the momentum is zero."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if group["momentum"]:
                    buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                    update = buffer.mul_(group["momentum"]).add_(p.grad)
                p.sub_(group["lr"] * update)


@pytest.mark.parametrize(("name", "make"), _optimizers())
class TestEveryOptimizer:
    def _pair(self, make: Any) -> tuple[torch.optim.Optimizer, nn.Parameter, nn.Parameter]:
        shared, head = _parameter(0.5, -1.0), _parameter(0.5, -1.0)
        optimizer = make([shared, head])
        for g in GRADIENTS[:3]:
            shared.grad, head.grad = g.clone(), g.clone()
            optimizer.step()
        shared.grad, head.grad = GRADIENTS[3].clone(), GRADIENTS[3].clone()
        return optimizer, shared, head

    def test_sigma_of_one_changes_nothing(self, name: str, make: Any) -> None:
        optimizer, shared, head = self._pair(make)
        with modulated(optimizer, 1.0, [shared]):
            optimizer.step()
        assert torch.equal(shared, head)

    def test_only_the_shared_parameters_are_concerned_in_a_mixed_group(self, name: str, make: Any) -> None:
        optimizer, shared, head = self._pair(make)
        plain, _, other = self._pair(make)
        with modulated(optimizer, 0.1, [shared]):
            optimizer.step()
        plain.step()
        assert torch.equal(head, other)
        assert not torch.equal(shared, head)

    def test_it_lasts_for_one_step(self, name: str, make: Any) -> None:
        optimizer, shared, _ = self._pair(make)
        twice, same, _ = self._pair(make)
        with modulated(optimizer, 0.1, [shared]):
            optimizer.step()
        optimizer.step()
        with modulated(twice, 0.1, [same]):
            twice.step()
            twice.step()
        assert torch.equal(shared, same)

    def test_an_exception_puts_everything_back(self, name: str, make: Any) -> None:
        optimizer, shared, head = self._pair(make)
        groups = [
            (id(g), [id(p) for p in g["params"]], {k: v for k, v in g.items() if k != "params"})
            for g in optimizer.param_groups
        ]

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        # Runs after the hook of `modulated`, so the memory is already changed when the step fails.
        def failing_step() -> None:
            with modulated(optimizer, 0.1, [shared]):
                hook = optimizer.register_step_pre_hook(fail)
                try:
                    optimizer.step()
                finally:
                    hook.remove()

        with pytest.raises(KeyboardInterrupt):
            failing_step()
        assert groups == [
            (id(g), [id(p) for p in g["params"]], {k: v for k, v in g.items() if k != "params"})
            for g in optimizer.param_groups
        ]
        optimizer.step()
        assert torch.equal(shared, head)

    def test_reset_is_a_fresh_optimizer(self, name: str, make: Any) -> None:
        optimizer, shared, _ = self._pair(make)
        fresh = nn.Parameter(shared.detach().clone())
        fresh.grad = GRADIENTS[3].clone()
        with modulated(optimizer, 0.5, [shared], mode="reset"):
            optimizer.step()
        make([fresh]).step()
        assert torch.equal(shared, fresh)

    def test_released_resets_for_a_sigma_of_at_most_zero(self, name: str, make: Any) -> None:
        optimizer, shared, _ = self._pair(make)
        other, same, _ = self._pair(make)
        with modulated(optimizer, -0.2, [shared], mode="released"):
            optimizer.step()
        with modulated(other, 0.9, [same], mode="reset"):
            other.step()
        assert torch.equal(shared, same)

    def test_descent_turns_the_sign(self, name: str, make: Any) -> None:
        optimizer, shared, _ = self._pair(make)
        other, same, _ = self._pair(make)
        with modulated(optimizer, -0.3, [shared], mode="descent"):
            optimizer.step()
        with modulated(other, 0.3, [same], mode="paper"):
            other.step()
        assert torch.equal(shared, same)

    def test_keep_changes_nothing(self, name: str, make: Any) -> None:
        optimizer, shared, head = self._pair(make)
        with modulated(optimizer, 0.0, [shared], mode="keep"):
            optimizer.step()
        assert torch.equal(shared, head)


def test_momentum_is_scaled() -> None:
    p = _parameter(0.0)
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.5)
    _run(optimizer, p, [torch.tensor([4.0], dtype=torch.float64)])
    p.grad = torch.tensor([1.0], dtype=torch.float64)
    with modulated(optimizer, 0.25, [p]):
        optimizer.step()
    assert float(optimizer.state[p]["momentum_buffer"]) == 0.25 * 0.5 * 4.0 + 1.0
    assert float(p.detach()) == -4.0 - 1.5


def test_muon_averages_by_equation_13() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.Muon([p], lr=LR, momentum=0.9)
    p.grad = torch.eye(2)
    optimizer.step()
    m, g = optimizer.state[p]["momentum_buffer"].clone(), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    p.grad = g.clone()
    with modulated(optimizer, 0.5, [p]):
        optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], 0.45 * m + 0.55 * g)


def test_a_group_of_scaled_betas_is_there_during_the_step_only() -> None:
    p, q = _parameter(0.0), _parameter(0.0)
    optimizer = Lion([p, q])
    seen: list[list[tuple[float, float]]] = []
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with modulated(optimizer, 0.5, [p]):
        optimizer.register_step_pre_hook(lambda *_: seen.append([g["betas"] for g in optimizer.param_groups]))
        optimizer.step()
        assert [g["betas"] for g in optimizer.param_groups] == [(0.9, 0.99)]
    assert seen == [[(0.9, 0.99), (0.45, 0.495)]]


def test_without_memory_nothing_happens() -> None:
    p = _parameter(1.0)
    optimizer = torch.optim.SGD([p], lr=1.0)
    p.grad = torch.ones_like(p)
    with modulated(optimizer, 0.3, [p]):
        optimizer.step()
    assert float(p.detach()) == 0.0


def test_a_block_without_a_step_changes_nothing() -> None:
    p, q = _parameter(1.0, 1.0), _parameter(1.0, 1.0)
    first, second = torch.optim.Adam([p], lr=LR), torch.optim.Adam([q], lr=LR)
    _run(first, p, GRADIENTS[:1])
    _run(second, q, GRADIENTS[:1])
    with modulated(first, 0.0, [p]):
        pass
    _run(first, p, GRADIENTS[1:])
    _run(second, q, GRADIENTS[1:])
    assert torch.equal(p, q)


@pytest.mark.parametrize("sigma", [1.5, -2.0, math.nan])
def test_sigma_out_of_range(sigma: float) -> None:
    p = _parameter(1.0)
    with pytest.raises(InvalidParameterError, match="sigma"), modulated(torch.optim.SGD([p], lr=1.0), sigma, [p]):
        pass


def test_unknown_mode() -> None:
    p = _parameter(1.0)
    with (
        pytest.raises(InvalidParameterError, match="mode"),
        modulated(torch.optim.SGD([p], lr=1.0), 0.0, [p], mode="other"),  # type: ignore[arg-type]
    ):
        pass


FUSED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "SGD with all": partial(
        torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True, nesterov=False
    ),
    "Nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
    "AdamW": partial(torch.optim.AdamW, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("sigma", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("mode", ["paper", "released", "descent", "betas", "reset", "keep"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_reuse_what_the_plain_ones_do(name: str, mode: Any, sigma: float) -> None:
    found = []
    for kernel in ({"fused": True}, {"foreach": False}):
        shared, head = _parameter(0.5, -1.0), _parameter(0.5, -1.0)
        optimizer = FUSED[name]([shared, head], **kernel)
        for step, gradient in enumerate(GRADIENTS[:4]):
            shared.grad, head.grad = gradient.clone(), gradient.clone()
            with modulated(optimizer, sigma, [shared], mode=mode if step == 2 else "keep"):
                optimizer.step()
        found.append((shared.detach(), head.detach()))
    torch.testing.assert_close(found[0], found[1])
