"""The methods inside a training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import LS, MGDA, NashMTL, UPGrad, available, make
from mtl_core.extension import WeighsJacobian, offers


def setting() -> tuple[mtl_core.Problem, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    problem = mtl_core.Problem(
        model, lambda model, x: model(x).square().mean(dim=0), shared=model[0], tasks=("a", "b", "c")
    )
    return problem, torch.randn(16, 4), torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.mark.parametrize("name", available())
def test_every_method_trains(name: str) -> None:
    problem, batch, optimizer = setting()
    method = make(name)
    if callable(getattr(method, "start_epoch", None)):
        method.start_epoch(0)
    before = problem.losses(batch).values.detach()
    for _ in range(20):
        report = mtl_core.step(problem, batch, optimizer, method)
    # Methods on the gradients themselves give an update and no weights, unless they only weigh them.
    gives_none = method.facts.needs == "jacobian" and not offers(method, WeighsJacobian)
    assert (report.weights is None) == gives_none
    if report.weights is not None:
        assert report.weights.shape == (3,)
    assert bool((problem.losses(batch).values.detach() < before).all())


def test_losses_are_handed_on() -> None:
    problem, batch, optimizer = setting()
    report = mtl_core.step(problem, batch, optimizer, MGDA(normalization="loss+"))
    assert report.weights is not None
    assert float(report.weights.sum()) == pytest.approx(1.0)


def test_by_hand_and_by_step_agree() -> None:
    problem, batch, _ = setting()
    losses = problem.losses(batch).values
    gradients = mtl_core.collect(losses, problem.shared)
    method = UPGrad()
    assert torch.equal(method(gradients), gradients.combine(method.weights(gradients.gramian)))
    assert torch.allclose(method(gradients), method(gradients.matrix), rtol=1e-5, atol=1e-8)


def test_a_regularised_solve_is_reported() -> None:
    model = nn.Linear(2, 1, bias=False)
    problem = mtl_core.Problem(
        model,
        lambda model, x: torch.stack([model(x).sum(), -model(x).sum()]),
        shared=model,
        tasks=("up", "down"),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = mtl_core.step(problem, torch.ones(1, 2), optimizer, NashMTL())
    assert [event.kind for event in report.events] == ["regularised_solve"]


def test_an_absent_task_is_left_out() -> None:
    model = nn.Linear(3, 2, bias=False)

    def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"a": model(x)[:, 0].sum(), "b": model(x)[:, 1].square().sum()}

    problem = mtl_core.Problem(model, losses, shared=model, tasks=("a", "b", "c"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for method in (UPGrad(), MGDA(), NashMTL(), LS(), LS(weights=[1.0, 1.0, 5.0], reduction="mean")):
        report = mtl_core.step(problem, torch.ones(2, 3), optimizer, method)
        assert report.weights is not None
        assert bool(torch.isfinite(report.weights).all())
