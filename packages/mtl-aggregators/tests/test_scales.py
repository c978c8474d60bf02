"""Declared scales: written down by hand, measured on generic gradients, and against released code's formulas."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl_aggregators import CRMOGM, DWA, STCH, AlignedMTL, CAGrad, IMGrad, UPGrad, available, make
from mtl_aggregators.bases.three_batches import ThreeBatchMethod
from mtl_core import InvalidParameterError
from mtl_core.extension import CountsEpochs, TakesLosses, gramian_of, offers, weighted_sum

FORMULAS = Path(__file__).parents[3] / "benchmarks"
SIZES = (2, 3, 7)
SCALES = (1e-3, 1.0, 10.0, 1000.0)

BY_HAND: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "alignedmtl": (lambda m: 1.0, lambda m: 1.0),
    "cagrad": (lambda m: 1.4 / m, lambda m: 1.4 / 1.16),
    "config": (lambda m: 1.0, lambda m: 1.0),
    "cosmos": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "crmogm": (lambda m: 1.0 / m, lambda m: 1.0),
    "dbmtl": (lambda m: 0.1, lambda m: 0.1),
    "dualproj": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "dwa": (lambda m: 1.0, lambda m: 1.0),
    "excessmtl": (lambda m: 1.0, lambda m: 1.0),
    "fairgrad": (lambda m: m**-0.5, lambda m: m**0.5),
    "famo": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "gls": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "graddrop": (lambda m: 1.0, lambda m: 1.0),
    "gradnorm": (lambda m: 1.0, lambda m: 1.0),
    "gradvac": (lambda m: 1.0, lambda m: 1.0),
    "imgrad": (lambda m: 1.8 / m, lambda m: 1.8 / 1.64),
    "imtl": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "imtlg": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "imtll": (lambda m: 1.0, lambda m: 1.0),
    "krum": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "ls": (lambda m: 1.0, lambda m: 1.0),
    "marigold": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "mgda": (lambda m: 1.0 / m, lambda m: 1.0),
    "moco": (lambda m: 0.5 / m, lambda m: 0.5 / m),
    "modo": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "nashmtl": (lambda m: m**-0.5, lambda m: m**-0.5),
    "pbi": (lambda m: m**-0.5, lambda m: m**-0.5),
    "pcd": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "pcgrad": (lambda m: 1.0, lambda m: 1.0),
    "rlw": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "sdmgrad": (lambda m: 1.0 / m, lambda m: 1.0),
    "si": (lambda m: 1.0, lambda m: 1.0),
    "stch": (lambda m: m**-2.0, lambda m: 1.0),
    "trimmedmean": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "upgrad": (lambda m: 1.0 / m, lambda m: 1.0 / m),
    "uw": (lambda m: 0.5, lambda m: 0.5),
}
"""Scale and the released code's, of the default settings, for methods whose released code was looked at.

A method that is not here is measured, and must declare the same scale for the released code.
"""

VARIANTS: dict[str, dict[str, Any]] = {"stch": {"variant": "warmup"}}
"""What gives the released scale where that is another formula; ``paper_scale=True`` for all others."""

RELEASED = [name for name in available() if make(name).facts.scale(3) != make(name).facts.paper_scale(3)]
OPTIONAL = [name for name in RELEASED if name not in VARIANTS] + ["nashmtl"]


def generic(n_tasks: int, scale: float, seed: int = 0) -> Tensor:
    """Gradients with something in common, so that no method finds them stationary."""
    generator = torch.Generator().manual_seed(100 * n_tasks + seed)
    own, common = torch.randn(n_tasks, 12, generator=generator), torch.randn(12, generator=generator)
    norms = torch.logspace(0, 0.7, n_tasks).unsqueeze(1)
    return ((own + 0.7 * common) * norms * scale).double()


def update_of(method: Any, rows: Tensor) -> Tensor:
    if isinstance(method, ThreeBatchMethod):
        return weighted_sum(rows, method.weigh(gramian_of(rows)))
    update: Tensor = method(rows)
    return update


@pytest.mark.parametrize("name", sorted({*available(), *BY_HAND}))
def test_facts_are_what_was_written_down(name: str) -> None:
    facts = make(name).facts
    for m in (1, *SIZES):
        if name in BY_HAND:
            assert facts.scale(m) == pytest.approx(BY_HAND[name][0](m)), facts.scale.formula
            assert facts.paper_scale(m) == pytest.approx(BY_HAND[name][1](m)), facts.paper_scale.formula
        else:
            way_out = f"write both scales of {name} down in BY_HAND in {Path(__file__).name}"
            assert facts.paper_scale(m) == pytest.approx(facts.scale(m)), way_out


def measured(name: str, n_tasks: int) -> float:
    """The update's length beside the plain sum, where all gradients are one unit vector and all losses 1."""
    method = make(name)
    if method.facts.needs == "losses":
        if offers(method, CountsEpochs):
            method.start_epoch(0)
        losses = torch.ones(n_tasks, dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(method(losses), losses)[0].sum()) / n_tasks
    row = torch.tensor([0.6, 0.8], dtype=torch.float64)
    rows = row.expand(n_tasks, 2)
    beside = {"losses": torch.ones(n_tasks, dtype=torch.float64)}
    if name in NEEDS_LOSSES:
        return float(method(rows, **beside) @ row) / n_tasks
    if offers(method, TakesLosses) and method.takes_losses:
        return float(weighted_sum(rows, method.weights(gramian_of(rows), **beside)) @ row) / n_tasks
    return float(update_of(method, rows) @ row) / n_tasks


NEEDS_LOSSES = ("dbmtl",)
"""Aggregators that are called with the losses."""

UNMEASURED = {"marigold": "its weights are those of a whole step"}
"""Methods whose scale cannot be measured at one call; they must be in BY_HAND."""


@pytest.mark.parametrize("name", available())
def test_declared_scale_is_the_measured_one(name: str) -> None:
    if name in UNMEASURED:
        assert name in BY_HAND
        return
    facts = make(name).facts
    for n_tasks in (1, 2, 5):
        if n_tasks >= facts.min_tasks:
            assert measured(name, n_tasks) == pytest.approx(facts.scale(n_tasks), rel=1e-6), facts.scale.formula


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_scale_can_be_had(name: str) -> None:
    setting = VARIANTS.get(name, {"paper_scale": True})
    assert set(setting) <= set(inspect.signature(type(make(name))).parameters)
    wanted, facts = make(name).facts.paper_scale, make(name, **setting).facts
    for m in SIZES:
        assert facts.scale(m) == pytest.approx(wanted(m))
        assert facts.paper_scale(m) == pytest.approx(wanted(m))


@pytest.mark.parametrize("n_tasks", SIZES)
@pytest.mark.parametrize("name", OPTIONAL)
def test_the_option_multiplies_generic_updates_by_what_is_declared(name: str, n_tasks: int) -> None:
    facts = make(name).facts
    ratio = facts.paper_scale(n_tasks) / facts.scale(n_tasks)
    for scale in SCALES:
        rows = generic(n_tasks, scale)
        plain, paper = update_of(make(name), rows), update_of(make(name, paper_scale=True), rows)
        if name in ("cagrad", "imgrad"):
            ratio = n_tasks / (1.0 + make(name).c ** 2)
        assert torch.allclose(paper, ratio * plain, rtol=1e-9)


@pytest.mark.parametrize("name", [n for n in available() if make(n).facts.needs != "losses"])
def test_generic_updates_grow_as_the_degree_says(name: str) -> None:
    degree = make(name).facts.homogeneity
    if degree is None or name == "marigold":
        pytest.skip("no degree")
    extra = {"losses": torch.ones(3, dtype=torch.float64)} if name == "dbmtl" else {}
    if getattr(make(name), "takes_losses", False):
        pytest.skip("its losses are those of a step")
    for scale in SCALES:
        method, other = make(name), make(name)
        plain = method(generic(3, 1.0), **extra) if extra else update_of(method, generic(3, 1.0))
        found = other(generic(3, 1.0) * scale, **extra) if extra else update_of(other, generic(3, 1.0) * scale)
        assert torch.allclose(found, plain * scale**degree, rtol=1e-8)


@pytest.fixture(scope="module")
def released() -> Any:
    if not FORMULAS.is_dir():
        pytest.skip("the formulas are in the repository's benchmarks")
    sys.path.insert(0, str(FORMULAS))
    try:
        from formulas import released as module  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FORMULAS))
    return module


OURS: dict[str, Callable[[], Any]] = {
    "mgda": lambda: make("mgda", paper_scale=True),
    "cagrad": lambda: make("cagrad", paper_scale=True),
    "imgrad": lambda: make("imgrad", paper_scale=True),
    "nash_mtl": lambda: make("nashmtl", paper_scale=True),
    "fairgrad": lambda: make("fairgrad", alpha=2.0, paper_scale=True),
}


@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("n_tasks", SIZES)
@pytest.mark.parametrize("name", OURS)
def test_against_the_released_formula(released: Any, name: str, n_tasks: int, scale: float) -> None:
    rows = generic(n_tasks, scale, seed=1)
    expected = torch.from_numpy(getattr(released, name)(rows.numpy()))
    assert float((OURS[name]()(rows) - expected).norm()) <= 1e-6 * float(expected.norm())


def test_dwa_by_windows_against_the_released_formula(released: Any) -> None:
    costs = 1.0 + np.random.default_rng(0).random((6, 3))
    for paper_scale, factor in ((True, 1.0), (False, 3.0)):
        method = DWA(variant="window", window=3, paper_scale=paper_scale)
        losses = torch.ones(3, dtype=torch.float64, requires_grad=True)
        first = torch.autograd.grad(method(losses), losses)[0]
        assert float(first.sum()) / 3 == pytest.approx(method.facts.scale(3))
        assert method.facts.paper_scale(3) == pytest.approx(1 / 3)
        for row in costs:
            method.after_step(torch.from_numpy(row), lambda: torch.ones(3))
        found = torch.autograd.grad(method(losses), losses)[0]
        assert found.tolist() == pytest.approx((factor * released.dwa_by_windows(costs)).tolist(), rel=1e-9)
    assert DWA(paper_scale=True).facts.paper_scale(3) == 1.0


def test_stch_s_warm_up_has_the_released_scale() -> None:
    method = STCH(variant="warmup")
    method.start_epoch(0)
    losses = torch.ones(4, requires_grad=True)
    assert float(torch.autograd.grad(method(losses), losses)[0].sum()) / 4 == pytest.approx(method.facts.scale(4))


def test_preferences_are_the_released_ones_too() -> None:
    for method in (UPGrad(preference=[1.0, 2.0]), AlignedMTL(preference=[1.0, 2.0])):
        assert method.facts.paper_scale(2) == method.facts.scale(2) == 1.5


def test_a_wrapper_s_scale_is_set_on_what_it_wraps() -> None:
    with pytest.raises(InvalidParameterError, match="`paper_scale` must be set on the base"):
        IMGrad(CAGrad(), paper_scale=True)
    with pytest.raises(InvalidParameterError, match="`paper_scale` must be set on the weighting"):
        CRMOGM(CAGrad(), paper_scale=True)
    inner = CRMOGM(make("fairgrad", alpha=2.0, paper_scale=True))
    assert inner.facts.scale(8) == pytest.approx(2.0)
    assert math.isclose(inner.facts.paper_scale(8), 2.0)
