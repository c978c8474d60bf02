"""Parameters of the losses that the optimiser holds and the model does not have: no step would ever move them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import LS, MGDA, available, make
from mtl_core import InvalidInputError, MicroBatches


class Criterion(nn.Module):
    """Losses with trained scales, as of Kendall et al."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(3))

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        found = (model(x) - 1).square().mean(0) + 1
        return found * torch.exp(-self.log_variances) + self.log_variances.square()


def _setting() -> tuple[nn.Module, Criterion, mtl_core.Problem, Tensor]:
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), Criterion()
    problem = mtl_core.Problem(model, criterion, shared=model[0], tasks=("a", "b", "c"))
    return model, criterion, problem, torch.randn(12, 4)


WITHOUT_PARTS = {"gradnorm", "modo", "sdmgrad"}  # refuse micro-batches as such


@pytest.mark.parametrize(
    ("name", "parts"),
    [(name, parts) for name in available() for parts in (1, 2) if parts == 1 or name not in WITHOUT_PARTS],
)
def test_they_are_refused_before_anything_moves(name: str, parts: int) -> None:
    """A plain ``loss.backward()`` trains them; steps left them as they were without a word."""
    model, criterion, problem, x = _setting()
    batch: Any = x if parts == 1 else MicroBatches(x.chunk(parts))
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    method: Any = make(name)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # the second look is as sharp as the first
        if callable(getattr(method, "start_epoch", None)):
            method.start_epoch(0)
        with pytest.raises(InvalidInputError, match=r"no parameter that the optimiser holds.*got 1 of shapes \(3,\)"):
            mtl_core.step(problem, batch, optimizer, method)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", [LS(), MGDA()], ids=["losses", "gradients"])
def test_the_ways_out(method: Any) -> None:
    model, criterion, problem, x = _setting()
    mtl_core.step(problem, x, torch.optim.SGD(model.parameters(), lr=0.1), method)  # another's, or nobody's

    criterion.log_variances.requires_grad_(False)
    mtl_core.step(problem, x, torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1), method)
    criterion.log_variances.requires_grad_(True)

    whole = nn.ModuleDict({"net": model, "criterion": criterion})
    problem = mtl_core.Problem(whole, lambda m, x: m["criterion"](m["net"], x), shared=model[0], tasks=("a", "b", "c"))
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    mtl_core.step(problem, x, optimizer, method)
    assert bool((criterion.log_variances != 0).all())


@pytest.mark.parametrize("method", [LS(), MGDA()], ids=["losses", "gradients"])
def test_an_optimiser_that_serves_another_model_too_is_taken(method: Any) -> None:
    model, _, _, x = _setting()
    other = nn.Linear(4, 3)
    problem = mtl_core.Problem(model, lambda m, x: m(x).square().mean(0), shared=model[0], tasks=("a", "b", "c"))
    before = copy.deepcopy(other.state_dict())
    mtl_core.step(problem, x, torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1), method)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("method", [LS(), MGDA()], ids=["losses", "gradients"])
def test_those_that_are_given_to_the_optimiser_later_are_seen(method: Any) -> None:
    model, criterion, problem, x = _setting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mtl_core.step(problem, x, optimizer, method)
    optimizer.add_param_group({"params": list(criterion.parameters())})
    with pytest.raises(InvalidInputError, match="no parameter that the optimiser holds"):
        mtl_core.step(problem, x, optimizer, method)
