"""The logarithm before any method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import FAMO, LS, MARIGOLD, MGDA, SI, UPGrad, log_transform
from mtl_aggregators.log_transform import LogGramian, LogLosses, LogStep
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.testing import reference_jacobian, small_problem


def update(method: Any, **options: Any) -> Tensor:
    """What one step of plain descent writes to the shared parameters."""
    problem, batch = small_problem(3)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1.0)
    before = torch.cat([p.detach().reshape(-1).clone() for p in problem.shared])
    mtl_core.step(problem, batch, optimizer, method, **options)
    return before - torch.cat([p.detach().reshape(-1) for p in problem.shared])


def log_jacobian(eps: float = 1e-8) -> Tensor:
    problem, batch = small_problem(3)
    values = problem.losses(batch).values.detach()
    return reference_jacobian(problem, batch) / (values + eps)[:, None]


def test_the_kind_of_method_is_kept() -> None:
    assert isinstance(log_transform(LS()), LogLosses)
    assert isinstance(log_transform(MGDA()), LogGramian)
    assert isinstance(log_transform(MARIGOLD()), LogStep)
    assert isinstance(log_transform(lambda jacobian: jacobian.sum(0)), LogStep)
    with pytest.raises(InvalidInputError, match="`method` must"):
        log_transform(3)
    with pytest.raises(InvalidInputError, match=r"`method` must be an instance.*Give LS\(\)"):
        log_transform(LS)
    with pytest.raises(InvalidParameterError, match="`eps` must"):
        log_transform(LS(), eps=0.0)


@pytest.mark.parametrize("method", [MGDA(), UPGrad(), LS(), lambda jacobian: jacobian.square().sum(0)])
def test_the_method_sees_the_gradients_of_the_logarithms(method: Any) -> None:
    rows = log_jacobian()
    expected = rows.sum(0) if isinstance(method, LS) else method(rows)
    assert torch.allclose(update(log_transform(method)), expected, rtol=1e-8, atol=1e-12)


def test_losses_reach_a_method_that_takes_them() -> None:
    problem, batch = small_problem(3)
    values = problem.losses(batch).values.detach()
    method = log_transform(MGDA(normalization="l2"))
    assert isinstance(method, LogGramian)
    gradients = mtl_core.collect(problem.losses(batch).values, problem.shared)
    assert torch.allclose(method(gradients), MGDA(normalization="l2")(log_jacobian()), rtol=1e-8)
    with pytest.raises(InvalidInputError, match="`gradients` must be TaskGradients"):
        method(gradients.matrix)
    absent = values.clone()
    absent[1] = float("nan")
    gramian = gradients.gramian.clone()
    gramian[1] = gramian[:, 1] = 0.0
    assert float(method.weights(gramian, losses=absent)[1]) == 0.0


def test_log_of_the_sum_is_scale_invariant_scalarisation() -> None:
    assert torch.allclose(update(log_transform(LS())), update(SI()), rtol=1e-6)


def test_a_method_that_looks_back_sees_logarithms() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Looking(LS):
        def after_step(self, before: Tensor, after: Any) -> None:
            seen.append((before, after()))

    problem, batch = small_problem(3)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    values = problem.losses(batch).values.detach()
    mtl_core.step(problem, batch, optimizer, log_transform(Looking()))
    assert torch.allclose(seen[0][0], values.log(), atol=1e-6)
    assert torch.allclose(seen[0][1], problem.losses(batch).values.detach().log(), atol=1e-6)


def test_a_whole_step_reports_the_losses_themselves() -> None:
    problem, batch = small_problem(3)
    values = problem.losses(batch).values.detach()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    report = mtl_core.step(problem, batch, optimizer, log_transform(lambda jacobian: jacobian.sum(0)), max_norm=1.0)
    assert torch.allclose(report.losses, values)


def test_losses_without_a_logarithm_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="task 1: -1"):
        log_transform(LS())(torch.tensor([1.0, -1.0]))
    with pytest.raises(InvalidInputError, match="task 1: -1"):
        log_transform(MGDA()).weights(torch.eye(2), losses=torch.tensor([1.0, -1.0]))  # type: ignore[union-attr]


@pytest.mark.parametrize("inner", [lambda: FAMO(bound=-100.0), lambda: MARIGOLD(bound=-100.0, lr=1e-2), MGDA])
def test_state(inner: Any) -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    method = log_transform(inner())
    for _ in range(3):
        mtl_core.step(problem, batch, optimizer, method)
    fresh = log_transform(inner())
    fresh.load_state_dict(method.state_dict())
    found = []
    for each in (method, fresh):
        twin, own = copy.deepcopy((problem, optimizer))
        mtl_core.step(twin, batch, own, each)
        found.append([p.detach() for p in twin.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
