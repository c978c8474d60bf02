from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, InvalidParameterError, StepOptions, TaskSampling, UpdateEvery, step
from mtl_core.testing import reference_jacobian, small_problem


class Counted(nn.Module):
    """A weighting with a state, that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def weights(self, gramian: Tensor) -> Tensor:
        self.calls += 1
        return 1.0 / (self.calls + gramian.diagonal().sqrt())


class SumOfLosses:
    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        return losses.sum()


def make(n_tasks: int = 3) -> tuple[Any, Tensor, torch.optim.Optimizer]:
    problem, batch = small_problem(n_tasks)
    return problem, batch, torch.optim.SGD(problem.model.parameters(), lr=0.05)


def test_weights_last_for_the_given_number_of_steps() -> None:
    problem, batch, optimizer = make()
    weighting = Counted()
    method = UpdateEvery(weighting, steps=3)
    reports = [step(problem, batch, optimizer, method) for _ in range(7)]
    assert int(weighting.calls) == 3
    assert [report.gramian is None for report in reports] == [False, True, True, False, True, True, False]
    weights = [report.weights for report in reports]
    for k in range(7):
        torch.testing.assert_close(weights[k], weights[k - k % 3])
    assert not torch.allclose(weights[0], weights[3])


def test_every_step_is_the_weighting_itself() -> None:
    (problem, batch, optimizer), (other, _, second) = make(), make()
    plain, every = Counted(), UpdateEvery(Counted(), steps=1)
    for _ in range(3):
        step(problem, batch, optimizer, plain, max_norm=0.5)
        step(other, batch, second, every, max_norm=0.5)
    for p, q in zip(problem.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_update_every_resumes_in_a_fresh_object() -> None:
    (problem, batch, optimizer), (other, _, second) = make(), make()
    method, fresh = UpdateEvery(Counted(), steps=3), UpdateEvery(Counted(), steps=3)
    for _ in range(2):
        step(problem, batch, optimizer, method)
    fresh.load_state_dict(method.state_dict())
    other.model.load_state_dict(problem.model.state_dict())
    for _ in range(3):
        step(problem, batch, optimizer, method)
        step(other, batch, second, fresh)
    for p, q in zip(problem.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("method", [Counted(), SumOfLosses(), lambda jacobian: jacobian.sum(0)])
@pytest.mark.parametrize("form", ["mapping", "joint"])
def test_only_the_sampled_tasks_move(method: Any, form: str) -> None:
    problem, batch = small_problem(4, form=form)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    before = [p.detach().clone() for p in problem.model.heads.parameters()]
    report = step(problem, batch, optimizer, TaskSampling(method, n_tasks=2))
    present = torch.isfinite(report.losses)
    assert int(present.sum()) == 2
    for i in range(4):
        moved = not torch.equal(problem.model.heads[i].weight.detach(), before[2 * i])
        assert moved == bool(present[i])


def test_sampled_sum_is_unbiased() -> None:
    problem, batch, _ = make(4)
    jacobian = reference_jacobian(problem, batch)
    sampling = TaskSampling(SumOfLosses(), n_tasks=1, generator=torch.Generator().manual_seed(3))
    seen = torch.zeros(4)
    for _ in range(200):
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
        report = step(problem, batch, optimizer, sampling)
        (task,) = torch.nonzero(torch.isfinite(report.losses)).flatten().tolist()
        seen[task] += 1
        gradient = torch.cat([p.grad.reshape(-1) for p in problem.shared])
        torch.testing.assert_close(gradient, jacobian[task])
    assert float(seen.min()) > 30  # 50 expected; four standard deviations are 24


def test_sampling_resumes() -> None:
    problem, batch, optimizer = make()
    method, fresh = TaskSampling(Counted(), n_tasks=1), TaskSampling(Counted(), n_tasks=1)
    step(problem, batch, optimizer, method)
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(
        torch.rand(5, generator=method.generator),
        torch.rand(5, generator=fresh.generator),
    )
    assert torch.equal(fresh.method.calls, method.method.calls)


@pytest.mark.parametrize("per", ["layer", "parameter"])
def test_weights_per_group_of_parameters(per: Any) -> None:
    problem, batch, _ = make()
    jacobian = reference_jacobian(problem, batch)
    before = [p.detach().clone() for p in problem.shared]
    report = step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=1.0), Counted(), per=per)
    sizes = [p.numel() for p in problem.shared]
    parts = jacobian.split(sizes, dim=1)
    groups = [[0, 1], [2, 3]] if per == "layer" else [[0], [1], [2], [3]]
    assert report.weights is not None
    assert report.weights.shape == (len(groups), 3)
    for calls, (members, weights) in enumerate(zip(groups, report.weights, strict=True), start=1):
        block = torch.cat([parts[k] for k in members], dim=1)
        expected = 1.0 / (calls + block.norm(dim=1))
        torch.testing.assert_close(weights, expected)
        for k in members:
            moved = (before[k] - problem.shared[k].detach()).reshape(-1)
            torch.testing.assert_close(moved, expected @ parts[k], rtol=1e-9, atol=1e-12)


def test_an_aggregator_per_layer_sees_each_layer_alone() -> None:
    problem, batch, optimizer = make()
    shapes = []

    def aggregator(jacobian: Tensor) -> Tensor:
        shapes.append(tuple(jacobian.shape))
        return jacobian.sum(0)

    report = step(problem, batch, optimizer, aggregator, per="layer")
    assert shapes == [(3, 16), (3, 20)]
    assert report.weights is None


@pytest.mark.parametrize("wrap", [lambda m: UpdateEvery(m, steps=2), lambda m: TaskSampling(m, n_tasks=1)])
def test_the_wrapped_method_hears_of_epochs(wrap: Any) -> None:
    heard = []
    method = Counted()
    method.start_epoch = heard.append
    wrap(method).start_epoch(3)
    wrap(Counted()).start_epoch(4)  # one that does not count
    assert heard == [3]


class TestBadInput:
    def test_update_every(self) -> None:
        with pytest.raises(InvalidInputError, match="must give weights, got function"):
            UpdateEvery(lambda jacobian: jacobian.sum(0), steps=2)  # type: ignore[arg-type]
        with pytest.raises(InvalidParameterError, match="`steps` must be a whole number"):
            UpdateEvery(Counted(), steps=0)

    def test_task_sampling(self) -> None:
        with pytest.raises(InvalidParameterError, match="`n_tasks` must be a whole number"):
            TaskSampling(Counted(), n_tasks=0)
        with pytest.raises(InvalidInputError, match="Put the sampling innermost"):
            TaskSampling(UpdateEvery(Counted(), steps=2), n_tasks=1)

    def test_per(self) -> None:
        with pytest.raises(InvalidParameterError, match=r"`per='layer'`.*keep='gramian'"):
            StepOptions(per="layer", keep="gramian")
        with pytest.raises(InvalidParameterError, match="heads='weighted'"):
            StepOptions(per="layer", heads="weighted")
        problem, batch, optimizer = make()
        method = type("Mean", (SumOfLosses,), {"needs": "losses"})()
        report = step(problem, batch, optimizer, method, per="layer")  # one weight per loss is one for every layer
        assert report.weights is not None
