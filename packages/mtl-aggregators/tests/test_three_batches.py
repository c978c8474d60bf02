"""Methods whose weights come from other batches than their update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import MoDo, SDMGrad, ThreeBatches, in_threes
from mtl_core import InvalidInputError


def setting() -> tuple[mtl_core.Problem, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 5), "a": nn.Linear(5, 1), "b": nn.Linear(5, 1)})

    def losses(model: Any, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
        x, _ = batch
        z = model["trunk"](x).tanh()
        return {"a": model["a"](z).square().mean(), "b": (model["b"](z) - 2.0).square().mean()}

    problem = mtl_core.Problem(model, losses, shared=model["trunk"], tasks=("a", "b"))
    return problem, torch.optim.SGD(model.parameters(), lr=0.05)


def test_loaders_are_grouped() -> None:
    assert [tuple(three) for three in in_threes(range(7))] == [(0, 1, 2), (3, 4, 5)]


@pytest.mark.parametrize("method", [SDMGrad(), MoDo(gamma=0.1)])
def test_they_train_on_either_form_of_batch(method: Any) -> None:
    problem, optimizer = setting()
    whole = (torch.randn(9, 4), "name")
    three = ThreeBatches(*((torch.randn(3, 4), "name") for _ in range(3)))
    before = problem.losses(whole).values.detach()
    for batch in [whole, three] * 30:
        report = mtl_core.step(problem, batch, optimizer, method)
    assert report.weights is not None
    assert float(report.weights.sum()) == pytest.approx(1.0)
    assert float(problem.losses(whole).values.detach().sum()) < float(before.sum())


def test_heads_train_on_the_third_batch_once() -> None:
    problem, optimizer = setting()
    parts = [(torch.randn(3, 4), "") for _ in range(3)]
    gradients = mtl_core.collect(problem.losses(parts[2]).values, problem.shared, heads=problem.heads)
    expected = [head.grad.clone() for head in problem.heads if head.grad is not None]
    mtl_core.step(problem, ThreeBatches(*parts), optimizer, SDMGrad())
    found = [head.grad for head in problem.heads if head.grad is not None]
    assert len(found) == len(expected) == 4
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))
    assert gradients.n_tasks == 2


def test_batches_that_cannot_be_cut() -> None:
    problem, optimizer = setting()
    for batch in ((torch.randn(2, 4), ""), (torch.randn(9, 4), torch.randn(8)), ("a", "b")):
        with pytest.raises(InvalidInputError, match="ThreeBatches"):
            mtl_core.step(problem, batch, optimizer, SDMGrad())
    with pytest.raises(InvalidInputError, match="MicroBatches"):
        mtl_core.step(problem, mtl_core.MicroBatches([(torch.randn(3, 4), "")]), optimizer, MoDo())
    with pytest.raises(InvalidInputError, match="keep='jacobian'"):
        mtl_core.step(problem, (torch.randn(9, 4), ""), optimizer, MoDo(), keep="gramian")
