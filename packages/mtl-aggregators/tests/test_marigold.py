"""MARIGOLD: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import MARIGOLD, WorstCaseDecrement
from mtl_aggregators.bilevel.objectives import Outcome
from mtl_core import InvalidParameterError


@pytest.mark.parametrize("settings", [{"estimate": "symmetric"}, {"hypergradient": "exact"}])
def test_it_balances_the_decrement(settings: dict[str, Any]) -> None:
    # Two tasks on a parameter each, with gradients 1 and 2: equal weights descend the second four times as fast, and
    # the worst decrement, min over the weights of max(-w_1, -4 w_2), is least at (0.8, 0.2).
    model = nn.Linear(2, 1, bias=False).double()
    slope = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        return 10.0 + slope * model.weight[0]  # type: ignore[index, operator, no-any-return]

    with torch.no_grad():
        model.weight.zero_()
    problem = mtl_core.Problem(model, losses, shared=model, tasks=("slow", "fast"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    # The maximum itself as objective: the game against an adversary circles around the same point.
    worst = MARIGOLD(adversary="exact", beta=10.0, lr=0.02, **settings)
    found = []
    for _ in range(300):
        report = worst.step(problem, torch.ones(1, 1), optimizer)
        assert report.weights is not None
        found.append(float(report.weights[0]))
    assert sum(found[200:]) / 100 == pytest.approx(0.8, abs=0.03)


def test_the_exact_adversary() -> None:
    nan = float("nan")
    upper = WorstCaseDecrement(adversary="exact")

    def outcome(before: list[float], after: list[float]) -> Outcome:
        start, end = torch.tensor(before, dtype=torch.float64), torch.tensor(after, dtype=torch.float64)
        return Outcome(("a", "b", "c"), start, end, torch.full((3,), 1 / 3, dtype=torch.float64))

    whole = outcome([1.0, 5.0, 2.0], [0.5, 4.0, 1.9])  # changes of -0.5, -1 and -0.1
    assert float(upper(whole)) == pytest.approx(-0.1)
    assert upper.task_weights(whole).tolist() == [0.0, 0.0, 1.0]
    upper.respond(whole)
    assert upper.task_weights(whole).tolist() == [0.0, 0.0, 1.0]
    lacking = outcome([1.0, 5.0, nan], [0.5, 4.0, nan])
    assert float(upper(lacking)) == pytest.approx(-0.5)
    assert upper.task_weights(lacking).tolist() == [1.0, 0.0, 0.0]
    trained = WorstCaseDecrement()  # the sum of the losses after the step, to begin with
    assert float(trained(whole)) == pytest.approx((0.5 + 4.0 + 1.9) / 3)
    with pytest.raises(InvalidParameterError, match="`adversary` must"):
        WorstCaseDecrement(adversary="both")  # type: ignore[arg-type]
