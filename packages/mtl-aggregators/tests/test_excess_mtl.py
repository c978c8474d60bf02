"""ExcessMTL: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    ExcessMTL,
    make,
)
from mtl_aggregators.excess_mtl import BLOCK
from mtl_core import InvalidJacobianError, InvalidParameterError


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


def test_excess_risks() -> None:
    method = ExcessMTL(robust_step_size=1.0)
    method(AXES)
    # e = g²/√(g² + g'²): (3, 1) first; then 9/√18 and 16/√17, over 3 and 1.
    update = method(rows([3.0, 0.0], [0.0, 4.0]))
    shares = torch.softmax(torch.tensor([0.5**0.5, 16 / 17**0.5]), dim=0) * 2
    assert update.tolist() == pytest.approx([3 * float(shares[0]), 4 * float(shares[1])])


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (ExcessMTL(), AXES, [3.0, 1.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("excessmtl", {"robust_step_size": 0.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)


def by_the_formula(steps: list[Tensor]) -> Tensor:
    """The weights after these Jacobians, in float64, with roots and quotients as they are printed."""
    weights = torch.ones(len(steps[0]), dtype=torch.float64)
    total = torch.zeros_like(steps[0], dtype=torch.float64)
    first = None
    for jacobian in steps:
        total += jacobian.double() ** 2
        risks = torch.where(total > 0, jacobian.double() ** 2 / total.sqrt(), 0.0).sum(dim=1)
        if first is None:
            first = risks
        else:
            weights = torch.softmax(weights.log() + risks / first, dim=0) * len(weights)
    return weights


def steps_of(m: int, size: int, scales: list[float], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(m)
    found = [torch.randn(m, size, generator=generator, dtype=torch.float64) * scale for scale in scales]
    for jacobian in found:
        jacobian[:, ::3] = 0.0  # coordinates that never have a gradient
    return [jacobian.to(dtype) for jacobian in found]


def weights_after(method: ExcessMTL, steps: list[Tensor]) -> Tensor:
    return [method.jacobian_weights(jacobian) for jacobian in steps][-1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [5, BLOCK // 24, BLOCK // 12 + 1, BLOCK // 3 + 1])
def test_blocks_of_columns_are_the_formula(size: int, dtype: torch.dtype, tolerance: float) -> None:
    steps = steps_of(3, size, [1.0, 2.0, 0.5], dtype)
    method = ExcessMTL()
    torch.testing.assert_close(weights_after(method, steps), by_the_formula(steps), rtol=tolerance, atol=0.0)
    # The sums take as much memory as the Jacobian.
    assert method.get_extra_state()["state"][2].dtype == dtype


@pytest.mark.parametrize("begin", [1.0, 1e-20, 1e25])
@pytest.mark.parametrize("then", [1.0, 1e-20, 1e25])
def test_squares_that_single_precision_does_not_hold(begin: float, then: float) -> None:
    steps = steps_of(3, 40, [begin, then, begin], torch.float32)
    for jacobian in steps:
        jacobian[0] *= 1e-3  # tasks of different sizes: each has to be held by itself
    method = ExcessMTL(robust_step_size=min(1.0, begin / then))
    exact = ExcessMTL(robust_step_size=min(1.0, begin / then))
    expected = weights_after(exact, [jacobian.double() for jacobian in steps])
    torch.testing.assert_close(weights_after(method, steps), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("then", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1e-12, 1e-17, 1e-19, 1e-25])
def test_a_task_that_begins_late_and_small(scale: float, then: torch.dtype) -> None:
    """Of which sums in single precision had nothing but their floor."""
    steps = steps_of(3, 40, [1.0, 1.0, 1.5, 0.5], torch.float32)
    for number, jacobian in enumerate(steps):
        jacobian[1] = 0.0 if number == 0 else jacobian[1] * scale
    steps[1:] = [jacobian.to(then) for jacobian in steps[1:]]
    known = [jacobian.double() for jacobian in steps]
    assert torch.isfinite(weights_after(ExcessMTL(), steps)).all()
    torch.testing.assert_close(
        weights_after(ExcessMTL(), steps), weights_after(ExcessMTL(), known), rtol=1e-5, atol=0.0
    )


def test_sums_that_became_wide_stay_wide() -> None:
    steps = steps_of(2, 40, [1.0, 1e-20, 1.0], torch.float32)
    method = ExcessMTL()
    kept = []
    for jacobian in steps:
        method(jacobian)
        kept.append(method.get_extra_state()["state"][2].dtype)
    assert kept == [torch.float32, torch.float64, torch.float64]
    # A state that was saved in float64, as all were in a version before, goes on in it.
    again = ExcessMTL()
    again.set_extra_state(method.get_extra_state())
    again(steps[0])
    assert again.get_extra_state()["state"][2].dtype == torch.float64


@pytest.mark.parametrize("scale", [1e-130, 1e130])
def test_a_single_task_out_of_range_is_refused(scale: float) -> None:
    jacobian = AXES.clone()
    jacobian[1] *= scale
    method = ExcessMTL()
    with pytest.raises(InvalidJacobianError, match=re.escape(f"got {scale:.6g} for 'task 1', whose square")):
        method(jacobian)
    assert method.get_extra_state()["state"] is None
    assert method(AXES).tolist() == [3.0, 1.0]
