"""Gradients whose squares float64 cannot hold are as any others, or are refused; they never give a wrong update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import CRMOGM, DBMTL, PCD, ExcessMTL, GroupedGradVac, MoCo, NashMTL, available, make
from mtl_core import (
    InvalidJacobianError,
    conflict_count,
    cosines,
    dominated_conflict,
    imbalance_ratio,
    individual_progress,
    majority_conflict,
    mean_cosines,
    weak_conflict,
)

SCALES = [1e-300, 1e-200, 1e-162, 1e-156, 1e-101, 1e101, 1e153, 1e160, 1e300]
SHAPE = (3, 7)


def drawn() -> Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scaled(scale: float) -> tuple[Tensor, float]:
    # A power of two, so that nothing is rounded.
    factor = 2.0 ** round(torch.tensor(scale, dtype=torch.float64).log2().item())
    return drawn() * factor, factor


CALLED = {
    name: (lambda name=name: make(name))
    for name in available()
    if make(name).facts.needs in ("gramian", "jacobian")
    and make(name).facts.homogeneity is not None
    and name not in ("dbmtl", "gradnorm")  # called with losses
}
CALLED |= {
    "crmogm of pcd": lambda: CRMOGM(PCD()),
    "nash, held": lambda: NashMTL(update_weights_every=2),
    "dbmtl of logarithms": lambda: DBMTL(log_losses=False),
    "grouped": lambda: GroupedGradVac(sizes=[3, 4]),
}
REFUSE = {"pcd", "crmogm of pcd", "nash, held", "excessmtl"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CALLED)
def test_the_update_is_that_of_any_other_scale_or_an_error(name: str, scale: float) -> None:
    jacobian, factor = scaled(scale)
    wanted = CALLED[name]()(drawn())
    degree = CALLED[name]().facts.homogeneity
    assert degree is not None
    try:
        found = CALLED[name]()(jacobian)
    except InvalidJacobianError:
        assert name in REFUSE
        return
    # In logarithms of two: the factor's power may itself be out of range.
    half = factor ** (-0.5 * degree)
    torch.testing.assert_close(found * half * half, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-170, 1e-300])
@pytest.mark.parametrize("name", sorted(REFUSE))
def test_a_method_that_refuses_moves_nothing(name: str, scale: float) -> None:
    method, other = CALLED[name](), CALLED[name]()
    for each in (method, other):
        each(drawn())
    with pytest.raises(InvalidJacobianError, match="Scale the losses"):
        method(scaled(scale)[0])
    assert torch.equal(method(drawn()), other(drawn()))


def test_the_tasks_out_of_range_are_named() -> None:
    jacobian = torch.eye(4, dtype=torch.float64) * torch.tensor([1.0, 1e-170, 0.0, 1e170], dtype=torch.float64)
    with pytest.raises(InvalidJacobianError, match=r"got 1e-170 for 'task 1', 1e\+170 for 'task 3', whose square"):
        ExcessMTL()(jacobian)


@pytest.mark.parametrize("name", CALLED)
def test_zero_gradients_are_no_matter_of_scale(name: str) -> None:
    assert torch.equal(CALLED[name]()(torch.zeros(*SHAPE, dtype=torch.float64)), torch.zeros(7, dtype=torch.float64))


def test_overflow_in_moco() -> None:
    method = MoCo()
    with pytest.raises(InvalidJacobianError, match="norms below 1e150"):
        method(drawn() * 1e160)
    assert torch.equal(method(drawn()), MoCo()(drawn()))
    assert torch.equal(ExcessMTL()(drawn() * 0.0), torch.zeros(7, dtype=torch.float64))


METRICS = [
    conflict_count,
    cosines,
    dominated_conflict,
    imbalance_ratio,
    majority_conflict,
    mean_cosines,
    weak_conflict,
]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_have_no_scale(metric: Any, scale: float) -> None:
    assert torch.equal(metric(scaled(scale)[0]), metric(drawn()))


@pytest.mark.parametrize("scale", SCALES)
def test_nor_has_progress(scale: float) -> None:
    jacobian, _ = scaled(scale)
    assert torch.equal(individual_progress(jacobian, jacobian[0]), individual_progress(drawn(), drawn()[0]))


NARROW = {
    name: factory
    for name, factory in CALLED.items()
    if name not in ("krum", "graddrop", "trimmedmean", "grouped") and factory().facts.min_tasks <= SHAPE[0]
}


@pytest.mark.parametrize(
    "exponents", [(0, -42, 0), (-42, 0, -39), (20, -25, 0), (3, -36, 0), (-35, 5, 5), (-42, -42, -42)], ids=str
)
@pytest.mark.parametrize("name", NARROW)
def test_gradients_at_the_end_of_single_precision_are_as_in_double(name: str, exponents: tuple[int, ...]) -> None:
    # Saturated tasks have gradients among the subnormal numbers.
    if name == "dbmtl of logarithms" and -42 in exponents:
        pytest.skip("what DBMTL remembers is of single precision, where such numbers have few digits")
    narrow = (drawn() * 10.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]).float()
    found, wanted = NARROW[name]()(narrow).double(), NARROW[name]()(narrow.double())
    largest = max(float(wanted.abs().max()), torch.finfo(torch.float32).tiny)
    assert float((found - wanted).abs().max()) <= 1e-4 * largest
