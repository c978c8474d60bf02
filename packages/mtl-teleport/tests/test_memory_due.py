"""The treatment of the optimiser's memory waits for an update of the very parameters that were moved."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem
from mtl_teleport import COST, Always, LoRA, MemoryOnly, RandomTeleport

Make = Callable[..., tuple[Problem, Any]]


class _Overflows(torch.autograd.Function):
    """Zero, with a gradient of infinity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 0

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return gradients[0] * float("inf")


class Scaled:
    """A run with a gradient scaler, whose gradients can be told to overflow, in the trunk or in a head."""

    def __init__(self, *, fused: bool) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"trunk": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
        self.overflow: str | None = None
        self.problem = Problem(self.model, self._losses, shared=self.model["trunk"], tasks=("a", "b"))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2, fused=fused)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.x = torch.randn(8, 3)

    def _losses(self, model: Any, x: Tensor) -> dict[str, Tensor]:
        out = model["head"](torch.tanh(model["trunk"](x)))
        more: Tensor | float = 0.0
        if self.overflow is not None:
            more = _Overflows.apply(model[self.overflow].bias.sum())
        return {"a": (out[:, 0] - 1).square().mean() + more, "b": (out[:, 1] + 1).square().mean() + more}

    def step(self, method: Any) -> tuple[str, ...]:
        report = mtl_core.step(self.problem, self.x, self.optimizer, method, scaler=self.scaler)
        return tuple(type(event).__name__ for event in report.events)

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {
            name: {key: value.clone() for key, value in self.optimizer.state[p].items()}
            for name, p in self.problem.model.named_parameters()
        }


class Once:
    """A trigger that fires when told to."""

    def __init__(self) -> None:
        self.fires = False

    def __call__(self, gramian: Tensor) -> bool:
        return self.fires


def _same(first: Any, second: Any) -> bool:
    return all(torch.equal(first[name][key], second[name][key]) for name in first for key in first[name])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("where", ["trunk", "head"])
@pytest.mark.parametrize("htr", ["paper", "released", "betas", "descent", "reset", "transported"])
@pytest.mark.parametrize("kind", ["teleport", "memory alone"])
def test_an_update_that_is_left_out_changes_no_memory_and_it_stays_due(
    fused: bool, where: str, htr: Any, kind: str
) -> None:
    """A fused optimiser is called by the scaler all the same: its averages became infinite, or were dropped."""
    if kind == "memory alone" and htr == "transported":
        pytest.skip("nothing is moved, so nothing is carried")
    run, once = Scaled(fused=fused), Once()
    other = Scaled(fused=fused)
    teleports = COST(
        trigger=once, max_per_epoch=None, aim=None, max_steps=3, lr=0.02, own_step="skip", htr=htr, adapter=LoRA(2)
    )
    method: Any = teleports if kind == "teleport" else MemoryOnly(steps=[2], sigmas=[-0.3], htr=htr)
    for _ in range(2):
        run.step(method)
    if kind == "teleport":
        once.fires = True
        assert run.step(method) == ("TeleportReport",)
        once.fires = False
    # The same from here on without an overflow between: what a step that was left out must not change.
    state = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict(), method.state_dict()))
    other.model.load_state_dict(state[0])
    other.optimizer.load_state_dict(state[1])
    again = copy.deepcopy(method)
    again.load_state_dict(state[2])
    before = run.state()
    run.overflow = where
    events = run.step(method)
    assert "SkippedUpdate" in events
    assert _same(before, run.state())
    run.overflow = None
    run.step(method)
    other.step(again)
    torch.testing.assert_close(run.state(), other.state(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("htr", ["reset", "transported"])
def test_what_is_due_is_due_to_the_model_that_was_moved(conflicting: Make, htr: Any) -> None:
    once = Once()
    cost = COST(trigger=once, max_per_epoch=None, aim=None, max_steps=3, lr=0.02, own_step="skip", htr=htr)
    (first, batch), (second, _) = conflicting(), conflicting()
    optimizers = {problem: torch.optim.Adam(problem.model.parameters(), lr=1e-3) for problem in (first, second)}
    for problem in (first, second):
        for _ in range(3):
            mtl_core.step(problem, batch, optimizers[problem], cost)
    once.fires = True
    (report,) = mtl_core.step(first, batch, optimizers[first], cost).events
    assert report.accepted  # type: ignore[union-attr]
    once.fires = False
    # What the second makes of its step by itself.
    alone = copy.deepcopy(second.model)
    copied = torch.optim.Adam(alone.parameters(), lr=1e-3)
    copied.load_state_dict(copy.deepcopy(optimizers[second].state_dict()))
    problem = Problem(alone, second._loss_fn, shared=alone.trunk, tasks=second.tasks)
    random = torch.get_rng_state()
    mtl_core.step(problem, batch, copied, COST(trigger=once, max_per_epoch=None))
    torch.set_rng_state(random)
    mtl_core.step(second, batch, optimizers[second], cost)
    for ours, wanted in zip(second.model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, wanted)
    mtl_core.step(first, batch, optimizers[first], cost)
    steps = {float(optimizers[first].state[p]["step"]) for p in first.shared}
    assert steps == ({1.0} if htr == "reset" else {4.0})
    assert cost.own_state()["due"] == []


def test_parameters_that_were_frozen_at_the_move_carry_nothing(conflicting: Make) -> None:
    once = Once()
    cost = RandomTeleport(length=0.1, trigger=once, max_per_epoch=None, own_step="skip", htr="transported")
    problem, batch = conflicting()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    mtl_core.step(problem, batch, optimizer, cost)
    frozen = problem.model.trunk[0].weight
    frozen.requires_grad_(False)
    once.fires = True
    mtl_core.step(problem, batch, optimizer, cost)
    once.fires = False
    frozen.requires_grad_(True)
    before = {p: optimizer.state[p]["exp_avg"].clone() for p in problem.shared}
    gradients = {}
    handle = optimizer.register_step_pre_hook(lambda *_: gradients.update({p: p.grad.clone() for p in problem.shared}))
    mtl_core.step(problem, batch, optimizer, cost)
    handle.remove()
    torch.testing.assert_close(optimizer.state[frozen]["exp_avg"], 0.9 * before[frozen] + 0.1 * gradients[frozen])
    moved = problem.model.trunk[4].weight
    ordinary = 0.9 * before[moved] + 0.1 * gradients[moved]
    assert not torch.allclose(optimizer.state[moved]["exp_avg"], ordinary)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda cost: pickle.loads(pickle.dumps(cost))])
def test_a_copy_of_the_method_has_it_due_too(conflicting: Make, how: Callable[[Any], Any]) -> None:
    problem, batch = conflicting()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    cost = RandomTeleport(
        length=0.1, trigger=Always(), max_per_epoch=1, steps_per_epoch=99, own_step="skip", htr="reset"
    )
    mtl_core.step(problem, batch, optimizer, cost)
    other = how(cost)
    for p in problem.model.parameters():
        optimizer.state[p] = {
            "step": torch.tensor(5.0),
            "exp_avg": torch.ones_like(p),
            "exp_avg_sq": torch.ones_like(p),
        }
    mtl_core.step(problem, batch, optimizer, other)
    assert {float(optimizer.state[p]["step"]) for p in problem.shared} == {1.0}
    assert {float(optimizer.state[p]["step"]) for p in problem.heads} == {6.0}


def test_an_error_leaves_it_due_to_whom_it_was(conflicting: Make) -> None:
    once = Once()
    cost = RandomTeleport(length=0.1, trigger=once, max_per_epoch=None, own_step="skip", htr="reset")
    (first, batch), (second, _) = conflicting(), conflicting()
    optimizers = {problem: torch.optim.Adam(problem.model.parameters(), lr=1e-3) for problem in (first, second)}
    for problem in (second, first):
        mtl_core.step(problem, batch, optimizers[problem], cost)
    once.fires = True
    mtl_core.step(first, batch, optimizers[first], cost)
    once.fires = False
    for problem in (second, first):
        with pytest.raises(RuntimeError):
            mtl_core.step(problem, (batch[0][:, :3], batch[1]), optimizers[problem], cost)
    for problem in (second, first):
        mtl_core.step(problem, batch, optimizers[problem], cost)
    assert {float(optimizers[second].state[p]["step"]) for p in second.shared} == {2.0}
    assert {float(optimizers[first].state[p]["step"]) for p in first.shared} == {1.0}
