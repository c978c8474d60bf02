"""GradNorm: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import (
    GradNorm,
    make,
)
from mtl_core import DetachedLossError, InvalidInputError, InvalidParameterError, Problem, step


class TestGradNorm:
    def test_first_step_by_hand(self) -> None:
        method = GradNorm(lr=0.1, alpha=1.0)
        gramian = torch.diag(torch.tensor([4.0, 1.0]))
        assert method.weights(gramian, losses=torch.tensor([1.0, 2.0])).tolist() == [1.0, 1.0]
        # Both are at their initial losses: norms 2 and 1 are to become 3/2 each; Adam's first step is its rate.
        assert method.weights(gramian, losses=torch.tensor([1.0, 2.0])).tolist() == pytest.approx([0.9, 1.1])

    def test_slow_tasks_gain(self) -> None:
        method = GradNorm(lr=0.01)
        method.weights(torch.eye(2), losses=torch.tensor([1.0, 1.0]))
        for _ in range(20):
            weights = method.weights(torch.eye(2), losses=torch.tensor([1.0, 0.1]))
        assert float(weights[0]) > 1.05 > float(weights[1])
        assert float(weights.sum()) == pytest.approx(2.0)

    def test_only_the_last_shared_layer_is_measured(self, trunk_problem: Callable[..., Any]) -> None:
        problem, batch, optimizer = trunk_problem()
        seen: list[Tensor] = []

        class Spy(GradNorm):
            def weights(self, gramian: Tensor, *, losses: Tensor | None = None) -> Tensor:
                seen.append(gramian)
                return super().weights(gramian, losses=losses)

        values = problem.losses(batch).values
        expected = mtl_core.collect(values, list(problem.shared)[2:]).gramian
        mtl_core.step(problem, batch, optimizer, Spy())
        assert torch.allclose(seen[0], expected, rtol=1e-5)
        mtl_core.step(problem, batch, optimizer, Spy(layer="trunk.0"))
        with pytest.raises(InvalidParameterError, match="`layer` must"):
            mtl_core.step(problem, batch, optimizer, GradNorm(layer="trunk.9"))

    def test_the_update_is_the_weighted_sum(self, trunk_problem: Callable[..., Any]) -> None:
        problem, batch, optimizer = trunk_problem()
        method = GradNorm()
        mtl_core.step(problem, batch, optimizer, method)
        assert method.task_weights is not None
        weights = method.task_weights.clone()
        gradients = mtl_core.collect(problem.losses(batch).values, problem.shared)
        expected = gradients.combine(weights)
        report = mtl_core.step(problem, batch, optimizer, method)
        found = torch.cat([p.grad.flatten() for p in problem.shared if p.grad is not None])
        assert torch.allclose(found, expected, atol=1e-6)
        assert report.weights is not None
        assert report.weights.tolist() == pytest.approx(weights.tolist(), rel=1e-6)

    def test_bad_losses(self) -> None:
        with pytest.raises(InvalidInputError, match="`losses` must be given"):
            GradNorm().weights(torch.eye(2))
        with pytest.raises(InvalidInputError, match="must be positive"):
            GradNorm().weights(torch.eye(2), losses=torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gradnorm", {"alpha": -1.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)


def test_a_layer_that_some_task_goes_past_is_named() -> None:
    model = nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2), "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        z = model["low"](x)
        return {"a": model["a"](z).square().mean() + 1, "b": model["b"](model["high"](z)).square().mean() + 1}

    problem = Problem(model, losses, shared=[model["low"], model["high"]], tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DetachedLossError, match=r"`layer` must be.*got high.weight, high.bias.*\['a'\]") as caught:
        step(problem, torch.ones(3, 2), optimizer, GradNorm())
    assert caught.value.tasks == ("a",)
    assert step(problem, torch.ones(3, 2), optimizer, GradNorm(layer="low")).weights is not None


@pytest.mark.parametrize("factor", [0.3, 1 / 3, 1e-7, 2.0**-40, 1e7])
@pytest.mark.parametrize("angle", [0.1, 0.3839, 1.4717, 2.5])
def test_norms_that_differ_by_rounding_alone_leave_the_weights_alone(angle: float, factor: float) -> None:
    rows = [[math.cos(angle), math.sin(angle)], [0.6, 0.8]]
    jacobian = factor * torch.tensor(rows, dtype=torch.float64)
    method = GradNorm()
    for _ in range(3):
        weights = method.weights(jacobian @ jacobian.T, losses=torch.ones(2, dtype=torch.float64))
        assert weights.tolist() == [1.0, 1.0]
