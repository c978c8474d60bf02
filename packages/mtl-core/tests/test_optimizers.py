"""Optimisers that are wrapped, do not step now, need a closure, or do not hold the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, MicroBatches, Note, Problem, step
from mtl_core.extension import inner_optimizer, uncovered
from mtl_core.testing import small_problem


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


class Holding(torch.optim.Optimizer):
    """An optimiser around another, of a kind that nobody knows."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, base.state

    def step(self, closure: Any = None) -> Any:
        return self.base.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)


def test_the_optimiser_within() -> None:
    accelerate = pytest.importorskip("accelerate")
    adam = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    assert inner_optimizer(adam) is adam
    prepared = accelerate.Accelerator(cpu=True).prepare(adam)
    assert prepared is not adam
    assert inner_optimizer(prepared) is adam


def test_an_unknown_wrapper_is_refused_where_its_inside_is_needed() -> None:
    adam = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    with pytest.raises(InvalidInputError, match=r"got Holding, which holds another in its.*optimizer\.base"):
        inner_optimizer(Holding(adam), strict=True)
    assert inner_optimizer(Holding(adam)) is adam
    with pytest.raises(
        InvalidInputError, match=r"must be a torch\.optim\.Optimizer, or hold one in an attribute, got int"
    ):
        inner_optimizer(3)


@pytest.mark.parametrize("method", [Equal(), Total(), lambda jacobian: jacobian.sum(0)])
def test_a_wrapper_may_make_plain_steps(method: Any) -> None:
    problem, batch = small_problem()
    before = [p.detach().clone() for p in problem.model.parameters()]
    step(problem, batch, Holding(torch.optim.SGD(problem.model.parameters(), lr=0.1)), method)
    assert not any(torch.equal(p, q) for p, q in zip(before, problem.model.parameters(), strict=True))


@pytest.mark.parametrize("method", [Equal(), Total(), lambda jacobian: jacobian.sum(0)])
def test_a_step_that_would_be_left_out_is_refused(method: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    problem, batch = small_problem()
    optimizer = accelerator.prepare(torch.optim.SGD(problem.model.parameters(), lr=0.1))
    before = [p.detach().clone() for p in problem.model.parameters()]
    with accelerator.accumulate(problem.model):
        with pytest.raises(InvalidInputError, match=r"accelerator\.accumulate\(\).*MicroBatches"):
            step(problem, batch, optimizer, method)
        # the way out that the text names
        accelerator.gradient_state._set_sync_gradients(True)
        step(problem, MicroBatches(batch.chunk(2)), optimizer, method)
    assert not any(torch.equal(p, q) for p, q in zip(before, problem.model.parameters(), strict=True))


@pytest.mark.parametrize("method", [Equal(), Total(), lambda jacobian: jacobian.sum(0)])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_the_optimiser_does_not_hold_is_cleared_and_said_once(method: Any, scaled: bool) -> None:
    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.shared, lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    seen, notes = [], []
    for _ in range(3):
        report = step(problem, batch, optimizer, method, scaler=scaler)
        seen.append(torch.cat([p.grad.flatten() for p in problem.heads if p.grad is not None]))
        notes.append([event.text for event in report.events if isinstance(event, Note)])
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(seen[2], seen[0])
    expected = torch.autograd.grad(problem.losses(batch).values.sum(), problem.heads)
    torch.testing.assert_close(seen[0], torch.cat([g.flatten() for g in expected]))
    assert len(notes[0]) == 1
    assert "does not hold 4 trainable parameters (heads.0.weight" in notes[0][0]
    assert notes[1:] == [[], []]


def test_an_optimiser_of_another_model() -> None:
    problem, batch = small_problem()
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=r"got 2 others and none of trunk\.0\.weight"):
        step(problem, batch, other, Total())
    assert uncovered(problem, torch.optim.SGD(problem.model.parameters(), lr=0.1)) == ()


@pytest.mark.parametrize("method", [Equal(), Total(), lambda jacobian: jacobian.sum(0)])
def test_closures(method: Any) -> None:
    problem, batch = small_problem()
    with pytest.raises(InvalidInputError, match="got LBFGS, whose step"):
        step(problem, batch, torch.optim.LBFGS(problem.model.parameters()), method)


def test_a_problem_of_one_layer_is_covered() -> None:
    model = nn.Linear(2, 2)
    problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
    assert uncovered(problem, torch.optim.SGD(model.parameters(), lr=0.1)) == ()
