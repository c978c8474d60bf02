"""What all methods on loss values have in common: laws, absent tasks, state."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mtl_core
from mtl_aggregators import (
    COSMOS,
    CRMOGM,
    DWA,
    FAMO,
    IMTL,
    IMTLL,
    MARIGOLD,
    PBI,
    RLW,
    STCH,
    UW,
    AuxiliaryWeights,
    Bilevel,
    MainTasks,
    log_transform,
    make,
)
from mtl_aggregators.registry import own_methods
from mtl_core import InvalidInputError, LossWeighting, Method
from mtl_core.extension import CountsEpochs, offers
from mtl_core.testing import losses as drawn_losses
from mtl_core.testing import small_problem

NAMED: dict[str, Callable[[], Any]] = {
    cls.__name__: cls
    for cls in own_methods().values()
    if offers(cls(), LossWeighting) and cls().facts.needs == "losses" and not offers(cls(), Method)
}
"""Every method of the package that makes a scalar of the losses."""

FACTORIES: dict[str, Callable[[], Any]] = {
    **NAMED,
    "RLW dirichlet": partial(RLW, distribution="dirichlet"),
    "DWA window": partial(DWA, variant="window", window=2),
    "STCH warmup": partial(STCH, variant="warmup", warmup_epochs=0),
    "FAMO released": partial(FAMO, variant="released"),
}
STATEFUL: dict[str, Callable[[], Any]] = {
    **{name: FACTORIES[name] for name in FACTORIES if name not in ("LS", "SI", "GLS", "STCH", "COSMOS", "PBI")},
    "IMTL": IMTL,
    "MARIGOLD": partial(MARIGOLD, lr=1e-2),
    "MARIGOLD fused": partial(MARIGOLD, lr=1e-2, lookahead="fused", estimate="two_point"),
    "MARIGOLD antithetic": partial(MARIGOLD, lr=1e-2, lookahead="fused", estimate="antithetic"),
    "MARIGOLD next": partial(MARIGOLD, lr=1e-2, lookahead="fused", probe="next"),
    "MARIGOLD every 3": partial(MARIGOLD, lr=1e-2, update_every=3),
    "MARIGOLD symmetric": partial(MARIGOLD, lr=1e-2, estimate="symmetric", adversary="exact"),
    "MARIGOLD exact": partial(MARIGOLD, lr=1e-2, hypergradient="exact"),
    "auxiliary": lambda: Bilevel(upper=MainTasks("task0"), weights=AuxiliaryWeights(["task1", "task2"], lr=1e-2)),
}
ALL = {**FACTORIES, **STATEFUL}


def started(factory: Callable[[], Any]) -> Any:
    method = factory()
    if callable(getattr(method, "start_epoch", None)):
        method.start_epoch(0)
    return method


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_declared_scale_at_losses_of_one(name: str, weights_of: Callable[..., Any]) -> None:
    for n_tasks in (1, 2, 5):
        method = started(FACTORIES[name])
        total = sum(weights_of(method, [1.0] * n_tasks))
        assert total / n_tasks == pytest.approx(method.facts.scale(n_tasks), rel=1e-6), method.facts.scale.formula


@pytest.mark.parametrize("name", [name for name in FACTORIES if started(FACTORIES[name]).facts.homogeneity is not None])
@given(losses=drawn_losses(low=1e-1, high=1e3), factor=st.sampled_from([1e-1, 0.3, 7.0, 1e3]))
def test_declared_homogeneity(name: str, losses: Tensor, factor: float, weights_of: Callable[..., Any]) -> None:
    # The update is J^T w: with losses and gradients scaled by s, it grows by s times what the weights grow by.
    method, twin = started(FACTORIES[name]), started(FACTORIES[name])
    degree = method.facts.homogeneity
    plain, scaled = torch.tensor(weights_of(method, losses)), torch.tensor(weights_of(twin, losses * factor))
    assert torch.allclose(scaled * factor, plain * factor**degree, rtol=1e-4, atol=1e-9 * float(plain.abs().max()))


@pytest.mark.parametrize("name", [name for name in FACTORIES if not name.startswith("RLW")])
@given(losses=drawn_losses(low=1e-3, high=1e3), seed=st.integers(0, 100))
def test_order_of_the_tasks_does_not_matter(
    name: str, losses: Tensor, seed: int, weights_of: Callable[..., Any]
) -> None:
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed))
    plain = torch.tensor(weights_of(started(FACTORIES[name]), losses))
    moved = torch.tensor(weights_of(started(FACTORIES[name]), losses[order]))
    assert torch.allclose(moved, plain[order], rtol=1e-6, atol=1e-9 * float(plain.abs().max()))


@pytest.mark.parametrize("name", FACTORIES)
def test_absent_tasks(name: str, weights_of: Callable[..., Any]) -> None:
    method = started(FACTORIES[name])
    if not method.takes_present:
        assert name in ("COSMOS", "PBI")
        return
    present = [True, False, True]
    found = weights_of(method, [2.0, 0.0, 3.0], present)
    assert found[1] == 0.0
    assert found[0] > 0.0
    assert found[2] > 0.0
    if "after_step" in dir(method):
        for _ in range(4):
            method.after_step(torch.tensor([2.0, float("nan"), 3.0]), lambda: torch.tensor([1.0, float("nan"), 2.5]))
        assert all(math.isfinite(w) for w in weights_of(method, [2.0, 1.0, 3.0]))
        trained = getattr(method, "trained", None)
        assert trained is None or float(trained[1]) == 0.0


def test_methods_without_absent_tasks_say_so_in_a_step() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    lacking = mtl_core.Problem(
        problem.model, lambda m, x: {"a": m(x)[1][0].square().mean()}, shared="trunk", tasks=("a", "b")
    )
    for method in (COSMOS(), PBI()):
        with pytest.raises(InvalidInputError, match=f"every task must be present for {type(method).__name__}"):
            mtl_core.step(lacking, batch, optimizer, method)


def run(method: Any, steps: int, problem: mtl_core.Problem, batch: Tensor, optimizer: torch.optim.Optimizer) -> None:
    for k in range(steps):
        if callable(getattr(method, "start_epoch", None)) and k % 2 == 0:
            method.start_epoch(int(getattr(method, "_epoch", None) or 0) + (k > 0))
        mtl_core.step(problem, batch, optimizer, method)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_fresh_object_continues_bit_for_bit(name: str, steps: int) -> None:
    problem, batch = small_problem(3)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
    original = ALL[name]()
    if callable(getattr(original, "start_epoch", None)):
        original.start_epoch(0)
    run(original, steps, problem, batch, optimizer)
    buffer = io.BytesIO()
    torch.save(original.state_dict(), buffer)
    buffer.seek(0)
    fresh = ALL[name]()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    pair = []
    for method in (original, fresh, pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
        # Copied together, so that the optimiser goes on with the copied model's parameters.
        twin, own = copy.deepcopy((problem, optimizer))
        method = method if method is fresh else copy.deepcopy(method)
        if callable(getattr(method, "start_epoch", None)):
            method.start_epoch(method._epoch if method._epoch is not None else 0)
        for k in range(3):
            report = mtl_core.step(twin, batch * (1.0 + 0.1 * k), own, method)
        assert report.weights is not None
        pair.append((report.weights, [p.detach() for p in twin.model.parameters()]))
    for weights, parameters in pair[1:]:
        assert torch.equal(weights, pair[0][0])
        assert all(torch.equal(a, b) for a, b in zip(parameters, pair[0][1], strict=True))


@pytest.mark.parametrize("name", ALL)
def test_reset(name: str) -> None:
    def first_steps(method: Any) -> Tensor:
        problem, batch = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        if callable(getattr(method, "start_epoch", None)):
            method.start_epoch(0)
        if hasattr(method, "generator"):
            method.generator.manual_seed(0)
        for _ in range(3):
            report = mtl_core.step(problem, batch, optimizer, method)
        assert report.weights is not None
        return report.weights

    method = ALL[name]()
    before = first_steps(method)
    method.reset()
    assert torch.equal(first_steps(method), before)


@pytest.mark.parametrize("name", ALL)
def test_trained_numbers_are_nobody_elses(name: str) -> None:
    problem, batch = small_problem(3)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    method = started(ALL[name])
    mtl_core.step(problem, batch, optimizer, method)
    assert list(method.parameters()) == []
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("heads", ["unit", "weighted"])
def test_scaling_and_accumulation_change_nothing(name: str, heads: Any) -> None:
    def trained(parts: int, scaler: torch.amp.GradScaler | None) -> tuple[Tensor, Tensor]:
        problem, _ = small_problem(3)
        batch = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
        method = started(ALL[name])
        for k in range(4):
            given = batch if parts == 1 else mtl_core.MicroBatches(batch.chunk(parts))
            if callable(getattr(method, "start_epoch", None)):
                method.start_epoch(k)
            report = mtl_core.step(problem, given, optimizer, method, heads=heads, max_norm=0.5, scaler=scaler)
        assert report.weights is not None
        return report.weights.double(), torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])

    plain = trained(1, None)
    cases: list[tuple[int, torch.amp.GradScaler | None]] = [(1, torch.amp.GradScaler("cpu", init_scale=2.0**10))]
    if name != "MARIGOLD exact":  # takes no parts, and says so
        cases.append((2, None))
    for parts, scaler in cases:
        for found, expected in zip(trained(parts, scaler), plain, strict=True):
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_the_number_of_tasks_may_not_change(seen: Callable[..., Any]) -> None:
    for method in (UW(), IMTLL(), FAMO()):
        seen(method, [1.0, 2.0])
        with pytest.raises(InvalidInputError, match="as before, got 3"):
            method(torch.ones(3))
        method.reset()
        method(torch.ones(3))


BOUNDED: dict[str, Callable[[], Any]] = {
    **{name: NAMED[name] for name in ("SI", "GLS", "FAMO")},
    "STCH after its warm-up": lambda: STCH(variant="warmup", warmup_epochs=0),
    "FAMO, released": FACTORIES["FAMO released"],
    "log LS": lambda: log_transform(make("ls")),
    "log MGDA": lambda: log_transform(make("mgda")),
    "log GradDrop": lambda: log_transform(make("graddrop")),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_loss_under_its_bound_is_called_by_the_name_of_its_task(name: str) -> None:
    """The step knows the names, where the method is handed a vector of losses only."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for tasks in (("seg", "depth"), ("left", "right")):

        def losses(model: torch.nn.Module, batch: Tensor, tasks: tuple[str, str] = tasks) -> dict[str, Tensor]:
            first, second = model(batch).square().mean(0)
            return {tasks[0]: first + 1.0, tasks[1]: second - second.detach() - 1.0}

        problem = mtl_core.Problem(model, losses, shared=model, tasks=tasks)
        method = BOUNDED[name]()
        if offers(method, CountsEpochs):
            method.start_epoch(0)
        with pytest.raises(InvalidInputError, match=f"got {tasks[1]}: -1[ .]"):
            mtl_core.step(problem, torch.ones(1, 2), optimizer, method)
    if name in NAMED:  # outside of a step they have no names
        with pytest.raises(InvalidInputError, match=r"got task 1: -1[ .]"):
            NAMED[name]()(torch.tensor([1.0, -1.0]))


POSITIVE: dict[str, Callable[[], Any]] = {
    "DBMTL": lambda: make("dbmtl"),
    "MoCo": lambda: make("moco", variant="libmtl"),
    "GradNorm": lambda: make("gradnorm"),
    "MGDA(normalization='loss')": lambda: make("mgda", normalization="loss"),
    "MGDA(normalization='loss+')": lambda: make("mgda", normalization="loss+"),
    "MGDA(normalization='loss') within CRMOGM": lambda: CRMOGM(make("mgda", normalization="loss")),
    "MARIGOLD": lambda: make("marigold"),
    "Bilevel": lambda: Bilevel(),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_so_is_one_that_must_be_positive(name: str) -> None:
    model = torch.nn.Linear(2, 2)

    def losses(model: torch.nn.Module, batch: Tensor) -> dict[str, Tensor]:
        first, second = model(batch).square().mean(0)
        return {"seg": first + 1.0, "depth": second - second.detach() - 1.0}

    problem = mtl_core.Problem(model, losses, shared=model, tasks=("seg", "depth"))
    with pytest.raises(InvalidInputError) as raised:
        mtl_core.step(problem, torch.ones(1, 2), torch.optim.SGD(model.parameters(), lr=1e-3), POSITIVE[name]())
    assert f"for {name.partition(' within')[0]}, got depth: -1" in str(raised.value)
    assert "seg" not in str(raised.value)
