"""Methods on loss values: numbers by hand, laws, state."""

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
    DWA,
    FAMO,
    GLS,
    IMTL,
    IMTLG,
    IMTLL,
    LS,
    MARIGOLD,
    PBI,
    RLW,
    SI,
    STCH,
    UW,
    AuxiliaryWeights,
    Bilevel,
    MainTasks,
)
from mtl_aggregators.bases.adam import Adam
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.testing import losses as drawn_losses
from mtl_core.testing import small_problem

FACTORIES: dict[str, Callable[[], Any]] = {
    "LS": LS,
    "SI": SI,
    "GLS": GLS,
    "RLW": RLW,
    "RLW dirichlet": partial(RLW, distribution="dirichlet"),
    "DWA": DWA,
    "DWA window": partial(DWA, variant="window", window=2),
    "UW": UW,
    "IMTLL": IMTLL,
    "STCH": STCH,
    "STCH warmup": partial(STCH, variant="warmup", warmup_epochs=0),
    "COSMOS": COSMOS,
    "PBI": PBI,
    "FAMO": FAMO,
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


def weights_of(method: Any, losses: list[float] | Tensor, present: list[bool] | None = None) -> list[float]:
    """The derivative of the method's scalar by each loss."""
    leaf = torch.as_tensor(losses, dtype=torch.float64).clone().requires_grad_()
    scalar = method(leaf) if present is None else method(leaf, present=torch.tensor(present))
    found: list[float] = torch.autograd.grad(scalar, leaf)[0].tolist()
    return found


def started(factory: Callable[[], Any]) -> Any:
    method = factory()
    if callable(getattr(method, "start_epoch", None)):
        method.start_epoch(0)
    return method


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


BY_HAND: list[tuple[Any, list[float], list[float]]] = [
    (LS(weights=[1.0, 3.0]), [2.0, 5.0], [1.0, 3.0]),
    (SI(), [2.0, 5.0], [0.5, 0.2]),
    (GLS(), [2.0, 8.0], [1.0, 0.25]),  # 4 / (2 * 2), 4 / (2 * 8)
    (UW(), [2.0, 5.0], [0.5, 0.5]),
    (IMTLL(), [2.0, 5.0], [1.0, 1.0]),
    (STCH(mu=1.0, weights=[1.0, 2.0]), [math.log(3.0), 0.0], [0.75, 0.5]),  # softmax (3/4, 1/4) times (1, 2)
    (STCH(mu=2.0), [1.0, 1.0], [0.25, 0.25]),
    (STCH(mu=1.0, weights=[1.0, 1.0], reference=[1.0, 0.0]), [1.0 + math.log(3.0), 0.0], [0.75, 0.25]),
    # cos = 0.6; its derivative by L is (r - cos L/|L|)/|L| = ((1, 0) - 0.6 (0.6, 0.8)) / 5
    (COSMOS(penalty=2.0, weights=[1.0, 0.0]), [3.0, 4.0], [1.0 - 2.0 * 0.128, 2.0 * 0.096]),
    (PBI(theta=2.0, weights=[1.0, 0.0]), [3.0, 4.0], [1.0, 2.0]),
    (PBI(theta=5.0), [2.0, 2.0], [0.5**0.5, 0.5**0.5]),  # on the line: no pull to either side
    (PBI(theta=1.0, weights=[1.0, 0.0], reference=[0.0, 5.0]), [3.0, 4.0], [1.0, -1.0]),
    (FAMO(), [1.0, 3.0], [0.75, 0.25]),
    (FAMO(bound=[0.0, 2.0]), [1.0, 3.0], [0.5, 0.5]),
]


@pytest.mark.parametrize(("method", "losses", "expected"), BY_HAND)
def test_weights_by_hand(method: Any, losses: list[float], expected: list[float]) -> None:
    assert weights_of(method, losses) == close(*expected)


def test_scalars_by_hand() -> None:
    losses = torch.tensor([2.0, 8.0], dtype=torch.float64)
    assert float(SI()(losses)) == pytest.approx(math.log(16.0))
    assert float(GLS()(losses)) == pytest.approx(4.0)
    assert float(UW()(losses)) == pytest.approx(5.0)
    assert float(IMTLL()(losses)) == pytest.approx(10.0)
    assert float(STCH(mu=1.0, weights=[1.0, 1.0])(losses)) == pytest.approx(math.log(math.e**2 + math.e**8))
    assert float(PBI(theta=2.0, weights=[0.0, 1.0])(losses)) == pytest.approx(8.0 + 2.0 * 2.0)


def test_a_geometric_mean_does_not_leave_its_range() -> None:
    losses = torch.full((64,), 1e-20)
    assert float(GLS()(losses)) == pytest.approx(1e-20, rel=1e-4)
    assert float(torch.prod(losses)) == 0.0


def test_random_weights() -> None:
    for distribution in ("normal", "dirichlet"):
        method = RLW(distribution=distribution)  # type: ignore[arg-type]
        draws = torch.tensor([weights_of(method, [1.0, 1.0, 1.0]) for _ in range(2000)])
        assert torch.allclose(draws.sum(1), torch.ones(2000), atol=1e-6)
        assert float(draws.min()) > 0.0
        assert draws.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    # Dirichlet(1, 1, 1): variance 1/18 in each coordinate.
    assert draws.var(0).tolist() == pytest.approx([1 / 18] * 3, rel=0.1)
    again = RLW(generator=torch.Generator().manual_seed(3)), RLW(generator=torch.Generator().manual_seed(3))
    assert weights_of(again[0], [1.0, 2.0]) == weights_of(again[1], [1.0, 2.0])
    softmax = torch.randn(2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(0)
    assert weights_of(RLW(generator=torch.Generator().manual_seed(3)), [1.0, 2.0]) == close(*softmax.tolist())


def seen(method: Any, *batches: list[float]) -> None:
    for batch in batches:
        method.after_step(torch.tensor(batch), lambda batch=batch: torch.tensor(batch) * 0.9)  # type: ignore[misc]


def test_dwa_by_epochs() -> None:
    method = DWA(temperature=1.0)
    with pytest.raises(InvalidInputError, match="`start_epoch` must be called"):
        method(torch.ones(2))
    for epoch, batches in enumerate(([[1.0, 3.0], [3.0, 5.0]], [[1.0, 4.0]])):
        method.start_epoch(epoch)
        assert weights_of(method, [1.0, 1.0]) == [1.0, 1.0]
        seen(method, *batches)
    method.start_epoch(2)
    method.start_epoch(2)
    # Means (2, 4), then (1, 4): ratios 1/2 and 1.
    share = 1.0 / (1.0 + math.exp(0.5))
    assert weights_of(method, [7.0, 7.0]) == close(2 * share, 2 * (1 - share))
    seen(method, [1.0, float("nan")])
    method.start_epoch(3)
    # The second task was absent for a whole epoch: it has no mean, and the ratio 1.
    assert weights_of(method, [7.0, 7.0]) == close(1.0, 1.0)


def test_dwa_by_windows() -> None:
    method = DWA(variant="window", window=2, temperature=1.0)
    seen(method, [2.0, 2.0], [2.0, 2.0], [1.0, 2.0])
    assert weights_of(method, [1.0, 1.0]) == [1.0, 1.0]
    seen(method, [1.0, 2.0])
    share = 1.0 / (1.0 + math.exp(0.5))
    assert weights_of(method, [1.0, 1.0]) == close(2 * share, 2 * (1 - share))
    assert DWA(variant="window").window == 25


def test_trained_scales_follow_their_gradient() -> None:
    # At s = 0 the gradients are (1 - L)/2 and L - 1; the first step of Adam has length lr.
    for method, sign in ((UW(lr=0.1), 1.0), (IMTLL(lr=0.1), -1.0)):
        seen(method, [4.0, 0.5])
        assert method.trained is not None
        assert method.trained.tolist() == close(sign * 0.1, -sign * 0.1)
    assert weights_of(UW(), [1.0]) == [0.5]


def test_trained_scales_start_where_they_are_told() -> None:
    # λ = e^{-s}/2, and e^s.
    assert weights_of(UW(start=-0.5), [1.0, 3.0]) == close(math.exp(0.5) / 2, math.exp(0.5) / 2)
    assert weights_of(UW(start=[0.0, 1.0]), [1.0, 3.0]) == close(0.5, math.exp(-1.0) / 2)
    assert weights_of(IMTLL(start=[0.0, -0.5]), [1.0, 3.0]) == close(1.0, math.exp(-0.5))
    for method in (UW(start=-0.5), IMTLL(start=-0.5)):
        assert method.facts.scale(3) == pytest.approx(weights_of(method, [1.0])[0])
        before = weights_of(method, [2.0, 1.0])
        seen(method, [2.0, 1.0])
        assert weights_of(method, [2.0, 1.0]) != before
        method.reset()
        assert weights_of(method, [2.0, 1.0]) == before
    with pytest.raises(InvalidInputError, match="`start` must hold one entry per task, got 2 for 3"):
        UW(start=[0.0, 1.0])(torch.ones(3))


@pytest.mark.parametrize(("factory", "weight"), [(UW, 0.5), (IMTLL, 1.0)])
def test_trained_scales_bring_losses_to_one(factory: Any, weight: float) -> None:
    method = factory(lr=0.05)
    for _ in range(1500):
        seen(method, [4.0, 0.5])
    assert weights_of(method, [4.0, 0.5]) == pytest.approx([weight / 4.0, weight / 0.5], rel=1e-3)


def test_famo_learns_from_the_logarithms() -> None:
    method = FAMO(gamma=0.0, lr=0.1)
    before, after = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.0])
    method.after_step(before, lambda: after)
    # delta = (log 2, 0); gradient z (delta - z.delta) = (log 2)/4 (1, -1): the task that improved loses weight.
    assert method.trained is not None
    assert method.trained.tolist() == close(-0.1, 0.1)
    share = 1.0 / (1.0 + math.exp(0.2))
    assert weights_of(method, [1.0, 1.0]) == close(share, 1 - share)


def test_famo_decays() -> None:
    assert FAMO().gamma == 1e-3
    assert FAMO(variant="released").gamma == 1e-5
    assert FAMO(variant="released", gamma=0.5).gamma == 0.5
    method = FAMO(gamma=1.0, lr=0.1)
    method.after_step(torch.ones(2), lambda: torch.tensor([0.5, 1.0]))
    for _ in range(200):
        method.after_step(torch.ones(2), lambda: torch.ones(2))
    assert method.trained is not None
    assert float(method.trained.abs().max()) < 0.05


def test_famo_against_torch_adam() -> None:
    method = FAMO(gamma=0.01)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        before, after = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1
        method.after_step(before, lambda after=after: after)  # type: ignore[misc]
        delta = (before + 1e-8).log() - (after + 1e-8).log()
        logits.grad = torch.autograd.grad(logits.softmax(0), logits, delta)[0]
        adam.step()
    assert method.trained is not None
    assert torch.allclose(method.trained, logits.detach(), rtol=1e-9, atol=1e-12)


def test_adam_lets_entries_rest() -> None:
    import numpy as np

    whole, halves = Adam(lr=0.1), Adam(lr=0.1)
    x = y = np.zeros(2)
    for k in range(6):
        x = whole.step(x, np.array([1.0, 2.0]), np.array([True, True]))
        y = halves.step(y, np.array([1.0, np.nan if k % 2 else 2.0]), np.array([True, k % 2 == 0]))
    assert y[0] == x[0]
    three = Adam(lr=0.1)
    z = np.zeros(1)
    for _ in range(3):
        z = three.step(z, np.array([2.0]), np.array([True]))
    assert y[1] == z[0]


@pytest.mark.parametrize("factory", [SI, GLS, FAMO, partial(FAMO, tasks=("seg", "depth"))])
def test_losses_under_their_bound_are_refused_by_name(factory: Any) -> None:
    name = "depth" if isinstance(factory, partial) else "task 1"
    with pytest.raises(InvalidInputError, match=f"must lie above their lower bound.*{name}: 0 "):
        factory()(torch.tensor([1.0, 0.0]))


def test_famo_refuses_after_the_update_too() -> None:
    with pytest.raises(InvalidInputError, match="depth: -2"):
        FAMO(tasks=("seg", "depth")).after_step(torch.ones(2), lambda: torch.tensor([1.0, -2.0]))
    with pytest.raises(InvalidInputError, match="task 0: nan"):
        FAMO().after_step(torch.ones(2), lambda: torch.tensor([float("nan"), 1.0]))
    with pytest.raises(InvalidInputError, match="one loss per bound, 2, got 3"):
        FAMO(bound=[0.0, 0.0])(torch.ones(3))


def test_stch_warms_up() -> None:
    method = STCH(mu=0.5, variant="warmup", warmup_epochs=1)
    with pytest.raises(InvalidInputError, match="`start_epoch` must be called"):
        method(torch.ones(2))
    method.start_epoch(0)
    seen(method, [100.0, 100.0])
    assert weights_of(method, [2.0, 4.0]) == close(0.5, 0.25)
    method.start_epoch(1)
    seen(method, [1.0, 2.0], [3.0, 6.0])
    assert weights_of(method, [2.0, 4.0]) == close(0.5, 0.25)
    method.start_epoch(2)
    # Relative to the means (2, 4): both 1, so a half each, times m / L.
    assert weights_of(method, [2.0, 4.0]) == close(0.5, 0.25)
    # (2, 1)^(1/mu) = (4, 1): shares 4/5 and 1/5.
    assert weights_of(method, [4.0, 4.0]) == close(2 * 0.8 / 4.0, 2 * 0.2 / 4.0)
    late = STCH(variant="warmup")
    late.start_epoch(9)
    with pytest.raises(InvalidInputError, match="Start at an earlier epoch"):
        late(torch.ones(2))


def test_imtl_has_the_direction_of_its_gradient_half() -> None:
    gramian = torch.tensor([[4.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    method = IMTL(lr=0.1)
    assert torch.allclose(method.weights(gramian), IMTLG().weights(gramian))
    for _ in range(20):
        method.after_step(torch.tensor([3.0, 0.2]), lambda: torch.zeros(2))
    found, plain = method.weights(gramian), IMTLG().weights(gramian)
    assert torch.allclose(found / found.sum(), plain / plain.sum())
    assert not torch.allclose(found, plain)
    # s = (-2, 2) but for Adam's rounding of the step length; then IMTL-G on E G E, times E.
    scale = method.get_extra_state()["scales"].exp()
    assert torch.allclose(found, IMTLG().weights(gramian * scale * scale[:, None]) * scale)


@pytest.mark.parametrize("name", FACTORIES)
def test_declared_scale_at_losses_of_one(name: str) -> None:
    for n_tasks in (1, 2, 5):
        method = started(FACTORIES[name])
        total = sum(weights_of(method, [1.0] * n_tasks))
        assert total / n_tasks == pytest.approx(method.facts.scale(n_tasks), rel=1e-6), method.facts.scale.formula


@pytest.mark.parametrize("name", [name for name in FACTORIES if started(FACTORIES[name]).facts.homogeneity is not None])
@given(losses=drawn_losses(low=1e-1, high=1e3), factor=st.sampled_from([1e-1, 0.3, 7.0, 1e3]))
def test_declared_homogeneity(name: str, losses: Tensor, factor: float) -> None:
    # The update is J^T w: with losses and gradients scaled by s, it grows by s times what the weights grow by.
    method, twin = started(FACTORIES[name]), started(FACTORIES[name])
    degree = method.facts.homogeneity
    plain, scaled = torch.tensor(weights_of(method, losses)), torch.tensor(weights_of(twin, losses * factor))
    assert torch.allclose(scaled * factor, plain * factor**degree, rtol=1e-4, atol=1e-9 * float(plain.abs().max()))


@pytest.mark.parametrize("name", [name for name in FACTORIES if not name.startswith("RLW")])
@given(losses=drawn_losses(low=1e-3, high=1e3), seed=st.integers(0, 100))
def test_order_of_the_tasks_does_not_matter(name: str, losses: Tensor, seed: int) -> None:
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed))
    plain = torch.tensor(weights_of(started(FACTORIES[name]), losses))
    moved = torch.tensor(weights_of(started(FACTORIES[name]), losses[order]))
    assert torch.allclose(moved, plain[order], rtol=1e-6, atol=1e-9 * float(plain.abs().max()))


@pytest.mark.parametrize("name", FACTORIES)
def test_absent_tasks(name: str) -> None:
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


@pytest.mark.parametrize(
    ("factory", "setting"),
    [(RLW, {"distribution": "uniform"}), (DWA, {"temperature": 0.0}), (DWA, {"window": 0}), (DWA, {"variant": "x"}),
     (UW, {"lr": 0.0}), (IMTLL, {"lr": -1.0}), (IMTL, {"lr": 0.0}), (STCH, {"mu": 0.0}), (STCH, {"variant": "x"}),
     (STCH, {"warmup_epochs": -1}), (COSMOS, {"penalty": -1.0}), (PBI, {"theta": -1.0}), (PBI, {"reference": "x"}),
     (FAMO, {"gamma": -1.0}), (FAMO, {"eps": 0.0}), (FAMO, {"bound": float("nan")}), (FAMO, {"variant": "x"})],
)  # fmt: skip
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)


def test_the_number_of_tasks_may_not_change() -> None:
    for method in (UW(), IMTLL(), FAMO()):
        seen(method, [1.0, 2.0])
        with pytest.raises(InvalidInputError, match="as before, got 3"):
            method(torch.ones(3))
        method.reset()
        method(torch.ones(3))


def test_settings_keep_their_digits() -> None:
    assert weights_of(LS(weights=[0.1, 0.7]), [1.0, 1.0]) == [0.1, 0.7]
    assert FAMO(bound=[0.1]).bound.tolist() == [0.1]
