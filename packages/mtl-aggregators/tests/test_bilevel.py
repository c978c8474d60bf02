"""Bilevel weighting: the estimator, trial steps without a trace, composition with the options of a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import LS, MARIGOLD, AuxiliaryWeights, Bilevel, MainTasks, SoftmaxWeights, WorstCaseDecrement
from mtl_aggregators.bilevel.hypergradient import exact_hypergradient
from mtl_aggregators.bilevel.objectives import Outcome
from mtl_aggregators.bilevel.trial_optimizer import TrialOptimizer
from mtl_aggregators.bilevel.weight_models import WeightModel
from mtl_core import InvalidInputError, InvalidParameterError, NonFiniteLossError, UnknownNameError
from mtl_core.extension import preserved
from mtl_core.testing import small_problem

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "Adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.05)),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.5, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.05),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.05, foreach=True),
    "NAdam foreach": lambda p: torch.optim.NAdam(p, lr=0.05, foreach=True),
    "groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 0.01 * (k + 1)} for k, q in enumerate(p)]),
}


class Noisy(nn.Module):
    """Batch normalisation and dropout: everything that a forward pass leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))


def noisy_problem() -> tuple[mtl_core.Problem, Tensor]:
    torch.manual_seed(0)
    model = Noisy().double()

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        z = model.get_submodule("trunk")(x)
        heads = model.get_submodule("heads")
        return torch.stack([(head(z) - i).square().mean() for i, head in enumerate(heads)])  # type: ignore[arg-type]

    problem = mtl_core.Problem(model, losses, shared=model.trunk, tasks=("a", "b"))
    return problem, torch.randn(16, 3, dtype=torch.float64)


def everything(problem: mtl_core.Problem, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that a step may change, bit for bit."""
    tensors: list[Any] = [t.detach().clone() for t in problem.model.state_dict().values()]
    for group in optimizer.param_groups:
        tensors += [value for name, value in group.items() if name != "params"]
        for p in group["params"]:
            tensors.append(p in optimizer.state)
            if p in optimizer.state:
                tensors += [v.clone() if isinstance(v, Tensor) else v for _, v in sorted(optimizer.state[p].items())]
    return [*tensors, torch.get_rng_state()]


def same(first: list[Any], second: list[Any]) -> bool:
    if len(first) != len(second):
        return False
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(first, second, strict=True))


# --- a trial step leaves no trace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_trial_step_leaves_no_trace(name: str, warm: bool) -> None:
    problem, batch = noisy_problem()
    optimizer = OPTIMIZERS[name](problem.model.parameters())
    if warm:
        for _ in range(2):
            mtl_core.step(problem, batch, optimizer, lambda jacobian: jacobian.mean(0))
    before = everything(problem, optimizer)
    storage = [p.data_ptr() for p in problem.model.parameters()]
    state = {id(p): id(optimizer.state[p]) for p in problem.model.parameters() if p in optimizer.state}
    method = MARIGOLD(lr=1e-2)
    optimizer.zero_grad()
    method._learn_by_trial(problem, batch, optimizer, mtl_core.StepOptions(max_norm=1.0))
    assert same(everything(problem, optimizer), before)
    assert [p.data_ptr() for p in problem.model.parameters()] == storage
    assert {id(p): id(optimizer.state[p]) for p in problem.model.parameters() if p in optimizer.state} == state
    assert all(p.grad is None for p in problem.model.parameters())
    found = method.state_dict()["weight_model._extra_state"]["parameters"]
    assert bool((found != 0.0).all())  # and yet it has learnt


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trial_step_is_the_optimisers_step(name: str) -> None:
    problem, batch = small_problem(2)
    twin, own_batch = copy.deepcopy((problem, batch))
    pairs = []
    for each in (problem, twin):
        optimizer = OPTIMIZERS[name](each.model.parameters())
        for _ in range(2):
            mtl_core.step(each, own_batch, optimizer, lambda jacobian: jacobian.mean(0))
        each.losses(own_batch).values.sum().backward()  # type: ignore[no-untyped-call]
        pairs.append(optimizer)
    pairs[0].step()
    with TrialOptimizer(pairs[1]) as trial:
        trial.step()
        moved = [p.detach().clone() for p in twin.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(moved, problem.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(moved, twin.model.parameters(), strict=True))


def test_hooks_and_schedules_do_not_see_a_trial() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    method = MARIGOLD()
    mtl_core.step(problem, batch, optimizer, method)
    schedule.step()
    assert calls == ["pre", "post"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@pytest.mark.parametrize("mode", [{}, {"lookahead": "fused"}, {"hypergradient": "exact"}])
def test_an_optimiser_that_needs_a_closure_is_refused_by_name(mode: dict[str, Any]) -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.LBFGS(problem.model.parameters())
    with pytest.raises(InvalidInputError, match="`optimizer` must make its step from gradients, got LBFGS"):
        mtl_core.step(problem, batch, optimizer, MARIGOLD(**mode))


def test_a_failure_in_the_trial_leaves_no_trace() -> None:
    problem, batch = noisy_problem()

    def broken(outcome: Outcome) -> Tensor:
        raise ZeroDivisionError

    for upper in (broken, lambda outcome: outcome.after.sum() * float("nan")):
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
        before = everything(problem, optimizer)
        with pytest.raises((ZeroDivisionError, NonFiniteLossError)):
            mtl_core.step(problem, batch, optimizer, Bilevel(upper=upper))
        assert same(everything(problem, optimizer), before)


@pytest.mark.parametrize("mode", [{}, {"lookahead": "fused"}])
def test_a_loss_that_the_step_breaks_is_named(mode: dict[str, Any]) -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    problem = mtl_core.Problem(
        model, lambda m, x: torch.stack([(1.0 - m(x)).sum() + 9.0, (1.0 - m(x)).sum().sqrt()]), shared=model,
        tasks=("fine", "broken"),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    with pytest.raises(NonFiniteLossError, match="after the step must be finite") as caught:
        mtl_core.step(problem, torch.ones(1, 1), optimizer, MARIGOLD(**mode))
    assert caught.value.tasks == ("broken",)
    assert mode or float(model.weight.detach()) == 0.0


def test_preserved_survives_an_error_and_replaced_buffers() -> None:
    model = nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensor = model.running_mean

    def disturb() -> None:
        with preserved(model):
            model(torch.randn(4, 2))
            model.running_mean = torch.full((2,), 7.0)
            raise KeyError

    with pytest.raises(KeyError):
        disturb()
    assert model.running_mean is tensor
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_real_step_is_as_if_no_trial_had_been() -> None:
    problem, batch = noisy_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    twin, own = copy.deepcopy((problem, optimizer))
    method = MARIGOLD(lr=1e-2)
    start = torch.get_rng_state()
    for _ in range(3):
        report = mtl_core.step(problem, batch, optimizer, method, heads="weighted")
        after = torch.get_rng_state()
        torch.set_rng_state(start)
        assert report.weights is not None
        weights = report.weights.tolist()
        mtl_core.step(twin, batch, own, LS(weights=weights), heads="weighted")
        assert torch.equal(torch.get_rng_state(), after)
        start = after
    shared = zip(problem.shared, twin.shared, strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in shared)
    buffers = zip(problem.model.buffers(), twin.model.buffers(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in buffers)


@pytest.mark.parametrize("lookahead", ["trial", "fused"])
def test_the_probe_sees_the_same_dropout(lookahead: Any) -> None:
    problem, batch = noisy_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    outcomes: list[Outcome] = []

    def upper(outcome: Outcome) -> Tensor:
        outcomes.append(outcome)
        return outcome.after.sum()

    buffers = [b.clone() for b in problem.model.buffers()]
    mtl_core.step(problem, batch, optimizer, Bilevel(upper=upper, lookahead=lookahead))
    assert torch.equal(outcomes[0].before, outcomes[0].after)  # the learning rate is 0
    moved = zip(buffers, problem.model.buffers(), strict=True)
    assert int(dict(problem.model.named_buffers())["trunk.1.num_batches_tracked"]) == 1
    assert any(not torch.equal(a, b) for a, b in moved)


# --- the estimator ----------------------------------------------------------------------------------------------------


class FixedDirections(Bilevel):
    """Records gradients instead of following them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.found: list[np.ndarray[Any, Any]] = []
        model = self.weight_model

        def record(gradient: Any, losses: Any, tasks: Any, present: Any) -> None:
            self.found.append(np.array(gradient))
            model.free(tasks, present)

        model.descend = record  # type: ignore[method-assign]


def exact_and(
    estimate: Any, heads: Any, draws: int, directions: list[np.ndarray[Any, Any]] | None = None
) -> tuple[Tensor, Tensor]:
    """The exact hypergradient at equal weights, and estimates of it ``[draws, m]``."""
    problem, batch = small_problem(3)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=2e-3)
    upper = MainTasks("task0", "task2")
    options = mtl_core.StepOptions(heads=heads)
    method = FixedDirections(upper=upper, estimate=estimate, radius=0.1)
    if directions is not None:
        remaining = iter(directions)
        method._draw = lambda free: next(remaining)  # type: ignore[method-assign]
    for _ in range(draws):
        method._learn_by_trial(problem, batch, optimizer, options)
    weights = torch.full((3,), 1.0 / 3.0, dtype=torch.float64)
    exact, _ = exact_hypergradient(problem, batch, optimizer, weights, upper, options=options)
    return exact, torch.from_numpy(np.stack(method.found))


@pytest.mark.parametrize("heads", ["unit", "weighted"])
@pytest.mark.parametrize("estimate", ["single_point", "two_point", "antithetic", "symmetric"])
def test_estimates_over_a_frame_of_directions_are_the_hypergradient(estimate: Any, heads: Any) -> None:
    # Over +-q_1, ..., +-q_m the noise of the estimator cancels, and only its bias, of second order in r, is left.
    frame, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    exact, estimates = exact_and(estimate, heads, 6, [*frame, *-frame])
    assert torch.allclose(estimates.mean(0), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    assert float(exact.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("estimate", "draws"), [("single_point", 1500), ("two_point", 1000), ("antithetic", 1000), ("symmetric", 500)]
)
def test_lemma_3_1_the_mean_over_many_draws_is_the_hypergradient(estimate: Any, draws: int) -> None:
    exact, estimates = exact_and(estimate, "weighted", draws)
    if estimate == "antithetic":  # what Adam averages
        estimates, draws = 0.5 * (estimates[::2] + estimates[1::2]), draws // 2
    mean, error = estimates.mean(0), estimates.std(0) / math.sqrt(draws)
    assert bool(((mean - exact).abs() <= 4.0 * error).all()), (mean, exact, error)
    relative = float(error.max() / exact.abs().max()) * math.sqrt(draws)
    # The spread of one estimate beside what it estimates: what the two others are for.
    limits = {
        "single_point": (100.0, 1e4),
        "two_point": (2.0, 30.0),
        "antithetic": (0.1, 2.0),
        "symmetric": (0.1, 2.0),
    }
    assert limits[estimate][0] < relative < limits[estimate][1]


def test_directions_are_uniform_on_the_sphere_of_the_free_weights() -> None:
    method = Bilevel()
    drawn = np.stack([method._draw(np.array([True, False, True, True])) for _ in range(2000)])
    assert np.allclose((drawn**2).sum(1), 1.0)
    assert not drawn[:, 1].any()
    assert np.allclose((drawn.T @ drawn / 2000)[np.ix_([0, 2, 3], [0, 2, 3])], np.eye(3) / 3, atol=0.03)


def test_antithetic_directions_come_in_pairs() -> None:
    method = Bilevel(estimate="antithetic", lookahead="fused")
    everyone = np.array([True, True, True])
    first, opposite, other = (method._draw(everyone) for _ in range(3))
    assert np.array_equal(opposite, -first)
    assert not np.array_equal(other, first)
    # With other tasks present there is no opposite: a new direction, and its opposite after it.
    some = np.array([True, False, True])
    fresh, back = method._draw(some), method._draw(some)
    assert fresh[1] == 0.0
    assert np.array_equal(back, -fresh)
    method._draw(everyone)
    method.reset()
    assert method.get_extra_state()["last"] is None
    plain = Bilevel()
    assert not np.array_equal(plain._draw(everyone), -plain._draw(everyone))


def test_the_exact_hypergradient_against_finite_differences() -> None:
    problem, batch = small_problem(3)
    upper = WorstCaseDecrement()
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for options in (mtl_core.StepOptions(), mtl_core.StepOptions(heads="weighted", max_norm=0.1)):
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        exact, outcome = exact_hypergradient(problem, batch, optimizer, weights, upper, options=options)

        def value(w: Tensor, options: mtl_core.StepOptions = options) -> float:
            twin = copy.deepcopy(problem)
            own = torch.optim.SGD(twin.model.parameters(), lr=0.05)
            before = twin.losses(batch).values.detach()

            class Fixed:
                needs = "losses"

                def __call__(self, losses: Tensor) -> Tensor:
                    return losses @ w

            mtl_core.step(twin, batch, own, Fixed(), **vars(options))
            after = twin.losses(batch).values.detach()
            return float(upper(Outcome(twin.tasks, before, after, w)))

        for i in range(3):
            shift = torch.zeros(3, dtype=torch.float64)
            shift[i] = 1e-5
            slope = (value(weights + shift) - value(weights - shift)) / 2e-5
            assert float(exact[i]) == pytest.approx(slope, rel=1e-5)
        assert torch.allclose(outcome.before, problem.losses(batch).values.detach())
        assert all(p.grad is None for p in problem.model.parameters())


def test_one_step_by_hand() -> None:
    # One parameter, f_1 = t, f_2 = 2t at t = 3, plain descent with lr 1: after a step t' = 3 - (l_1 + 2 l_2).
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(3.0)
    problem = mtl_core.Problem(
        model,
        lambda model, x: torch.stack([model(x).sum(), 2.0 * model(x).sum()]),
        shared=model,
        tasks=("one", "two"),
    )
    batch = torch.ones(1, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    draws = torch.empty(2, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(5))
    u = draws / draws.norm()
    method = MARIGOLD(beta=3.0, lr=0.1, radius=0.5, generator=torch.Generator().manual_seed(5))
    report = method.step(problem, batch, optimizer)
    perturbed = torch.tensor([0.5, 0.5], dtype=torch.float64) + 0.5 * u
    trial = 3.0 - float(perturbed[0] + 2.0 * perturbed[1])
    value = 0.5 * trial + 0.5 * 2.0 * trial
    gradient = 2.0 / 0.5 * value * u
    # Through the softmax at equal weights: beta / f_i * (1/2) * (g_i - mean); Adam's first step is its sign times lr.
    slope = 3.0 / torch.tensor([3.0, 6.0]) * 0.5 * (gradient - gradient.mean())
    a = -0.1 * slope.sign()
    expected = (3.0 * a / torch.tensor([3.0, 6.0])).softmax(0)
    assert report.weights is not None
    assert torch.allclose(report.weights, expected, rtol=1e-6)
    assert float(model.weight.detach()) == pytest.approx(3.0 - float(expected[0] + 2.0 * expected[1]), rel=1e-6)
    # The adversary climbs towards the task with the larger change, f(t') - f(3) = (t' - 3, 2 (t' - 3)).
    gain = (trial - 3.0) * torch.tensor([1.0, 2.0], dtype=torch.float64)
    b = method.state_dict()["upper._extra_state"]["b"]
    assert torch.allclose(b, 0.1 * (gain - gain.mean()).sign(), rtol=1e-6)


def test_the_fused_step_is_the_perturbed_one() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    draws = torch.empty(2, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(5))
    method = MARIGOLD(lookahead="fused", radius=0.1, generator=torch.Generator().manual_seed(5))
    report = method.step(problem, batch, optimizer)
    assert report.weights is not None
    assert torch.allclose(report.weights, 0.5 + 0.1 * draws / draws.norm())


def test_trial_and_fused_learn_the_same_in_their_first_step() -> None:
    states = []
    for lookahead in ("trial", "fused"):
        problem, batch = noisy_problem()
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
        method = MARIGOLD(lookahead=lookahead)  # type: ignore[arg-type]
        torch.manual_seed(1)
        method.step(problem, batch, optimizer)
        states.append(method.state_dict())
    for name in ("weight_model._extra_state", "upper._extra_state"):
        first, second = states[0][name]["adam"]["first"], states[1][name]["adam"]["first"]
        assert torch.allclose(first, second, rtol=1e-9)


def test_the_next_probe_is_the_next_batch() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    outcomes: list[Outcome] = []

    def upper(outcome: Outcome) -> Tensor:
        outcomes.append(outcome)
        return outcome.after.sum()

    calls = 0
    evaluate = problem.losses

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        return evaluate(*arguments, **settings)

    problem.losses = counted  # type: ignore[method-assign]
    method = Bilevel(upper=upper, lookahead="fused", probe="next")
    first = method.step(problem, batch, optimizer)
    assert outcomes == []
    second = method.step(problem, batch * 2.0, optimizer)
    assert torch.equal(outcomes[0].before, first.losses)
    assert torch.equal(outcomes[0].after, second.losses)
    assert calls == 2


@pytest.mark.parametrize("settings", [{}, {"lookahead": "fused"}, {"hypergradient": "exact"}])
def test_update_every(settings: dict[str, Any]) -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    method = MARIGOLD(update_every=3, lr=1e-2, **settings)
    counts = []
    for _ in range(7):
        method.step(problem, batch, optimizer)
        counts.append(int(method.state_dict()["weight_model._extra_state"]["adam"]["steps"][0]))
    assert counts == [1, 1, 1, 2, 2, 2, 3]


# --- auxiliary learning -----------------------------------------------------------------------------------------------


def auxiliary_problem() -> tuple[mtl_core.Problem, Tensor]:
    """A main task, an auxiliary one with the same optimum, and one with the opposite."""
    model = nn.Linear(2, 1, bias=False).double()
    target = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        theta = model.weight[0]  # type: ignore[index]
        near, far = (theta - target).square().sum(), (theta + target).square().sum()
        return {"main": near + 0.1, "helps": near + 0.2, "harms": far + 0.2}

    with torch.no_grad():
        model.weight.zero_()
    return mtl_core.Problem(model, losses, shared=model, tasks=("main", "helps", "harms")), torch.ones(1)


@pytest.mark.parametrize("settings", [{"estimate": "symmetric"}, {"hypergradient": "exact"}])
def test_auxiliary_tasks_are_weighed_by_what_they_do_for_the_main_one(settings: dict[str, Any]) -> None:
    problem, batch = auxiliary_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-3)
    weights = AuxiliaryWeights({"helps": 0.5, "harms": 0.5}, lr=0.02, minimum=0.0)
    method = Bilevel(upper=MainTasks("main"), weights=weights, **settings)
    for _ in range(100):
        report = method.step(problem, batch, optimizer, options=mtl_core.StepOptions())
    assert report.weights is not None
    main, helps, harms = report.weights.tolist()
    assert main == 1.0
    assert helps > 1.0
    assert harms < 0.1
    assert harms >= 0.0


def test_auxiliary_weights() -> None:
    model = AuxiliaryWeights(["b"], start=0.3, lr=0.1)
    tasks, losses, present = ("a", "b"), np.ones(2), np.array([True, True])
    assert model.weights(losses, tasks, present).tolist() == [1.0, 0.3]
    assert model.free(tasks, present).tolist() == [False, True]
    model.descend(np.array([5.0, 5.0]), losses, tasks, present)
    assert model.weights(losses, tasks, present).tolist() == pytest.approx([1.0, 0.2])
    assert model.weights(losses, tasks, np.array([False, True]))[0] == 0.0
    for _ in range(5):
        model.descend(np.array([5.0, 5.0]), losses, tasks, present)
    assert model.weights(losses, tasks, present)[1] < 0.0  # any sign, as in the paper
    with pytest.raises(UnknownNameError, match="task 'b'"):
        AuxiliaryWeights(["b"]).weights(losses, ("a", "c"), present)
    with pytest.raises(InvalidInputError, match="`auxiliary` must"):
        AuxiliaryWeights([])
    with pytest.raises(InvalidInputError, match="`main` must"):
        MainTasks()
    problem, batch = auxiliary_problem()
    with pytest.raises(UnknownNameError, match="Did you mean 'main'"):
        Bilevel(upper=MainTasks("maim")).step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=0.1))


def test_a_lambda_will_do_as_an_upper_objective() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    method = Bilevel(
        upper=lambda outcome: outcome.after.max() + 0.1 * outcome.weights.square().sum(),
        weights=SoftmaxWeights(beta=0.3, lr=1e-2),
    )
    for _ in range(3):
        assert method.step(problem, batch, optimizer).weights is not None


def test_softmax_weights() -> None:
    model: WeightModel = SoftmaxWeights(beta=2.0, lr=0.1, bound=[0.0, 1.0])
    tasks, present = ("a", "b"), np.array([True, True])
    losses = np.array([1.0, 3.0])
    assert model.weights(losses, tasks, present).tolist() == [0.5, 0.5]
    model.descend(np.array([1.0, 0.0]), losses, tasks, present)
    # a = (-0.1, 0.1), f = (1, 2): softmax(-0.2, 0.1)
    share = 1.0 / (1.0 + math.exp(0.3))
    assert model.weights(losses, tasks, present).tolist() == pytest.approx([share, 1 - share])
    assert model.weights(losses, tasks, np.array([True, False])).tolist() == [1.0, 0.0]
    with pytest.raises(InvalidInputError, match=r"b: 1 \(bound 1\)"):
        model.weights(np.array([1.0, 1.0]), tasks, present)
    with pytest.raises(InvalidInputError, match="Call reset"):
        model.parameters_for(("a", "b", "c"))


# --- options of a step ------------------------------------------------------------------------------------------------

MODES: list[dict[str, Any]] = [{}, {"lookahead": "fused"}, {"lookahead": "fused", "probe": "next"}]


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_are_one_batch(mode: dict[str, Any]) -> None:
    found = []
    for parts in (1, 2):
        problem, _ = small_problem(3)
        batch = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
        method = MARIGOLD(lr=1e-2, **mode)
        for _ in range(3):
            given = batch if parts == 1 else mtl_core.MicroBatches(batch.chunk(2))
            report = mtl_core.step(problem, given, optimizer, method, max_norm=0.5)
        assert report.weights is not None
        found.append((report.weights, torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_scaler_changes_nothing(mode: dict[str, Any]) -> None:
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        problem, batch = small_problem(3)
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.05)
        method = MARIGOLD(lr=1e-2, **mode)
        for _ in range(3):
            report = mtl_core.step(problem, batch, optimizer, method, scaler=scaler)
        assert report.weights is not None
        found.append((report.weights, torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)


def test_a_trial_leaves_the_scaler_alone() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    for k in range(1, 6):
        mtl_core.step(problem, batch, optimizer, MARIGOLD(), scaler=scaler)
        assert scaler.state_dict()["_growth_tracker"] == k % 3


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_an_overflow_teaches_nothing(mode: dict[str, Any], parts: int) -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e-6)
    problem = mtl_core.Problem(model, lambda m, x: m(x).square().mean(0) + 0.1, shared=model, tasks=("a", "b"))
    whole = torch.full((4, 2), 1e6)  # losses of 4, gradients of 4e6
    batch: Any = whole if parts == 1 else mtl_core.MicroBatches(whole.chunk(parts))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    method = MARIGOLD(**mode)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e37)
    mtl_core.step(problem, batch, optimizer, method, scaler=scaler)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.parameters(), strict=True))
    assert scaler.get_scale() == pytest.approx(0.5e37)
    assert method.state_dict()["weight_model._extra_state"]["adam"] == {}
    if mode.get("probe") == "next":  # nor from the batch after it, which sees the parameters as they were
        mtl_core.step(problem, whole * 1e-6, optimizer, method)
        assert method.state_dict()["weight_model._extra_state"]["adam"] == {}


@pytest.mark.parametrize("mode", [*MODES, {"hypergradient": "exact"}])
def test_absent_tasks(mode: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()

    def losses(model: nn.Module, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
        x, names = batch
        return {name: (model(x)[:, "abc".index(name)] - 1.0).square().mean() for name in names}

    problem = mtl_core.Problem(model, losses, shared=model, tasks=("a", "b", "c"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = MARIGOLD(lr=1e-2, **mode)
    x = torch.randn(8, 3, dtype=torch.float64)
    for names in ("abc", "ac", "b", "abc"):
        report = method.step(problem, (x, names), optimizer)
        assert report.weights is not None
        for i, name in enumerate("abc"):
            assert (float(report.weights[i]) == 0.0) == (name not in names)
        assert float(report.weights.sum()) == pytest.approx(1.0, abs=3e-3)
    # An objective on a task that is not there has nothing to say about this batch.
    main = Bilevel(upper=MainTasks("a"), weights=AuxiliaryWeights(["b"]), **mode)
    main.step(problem, (x, "bc"), optimizer)
    assert main.state_dict()["weight_model._extra_state"]["adam"] == {}


@pytest.mark.parametrize(
    "setting",
    [{"radius": 0.0}, {"update_every": 0}, {"lookahead": "both"}, {"probe": "last"}, {"estimate": "three"},
     {"hypergradient": "none"}, {"upper": 3}],
)  # fmt: skip
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        Bilevel(**setting)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(InvalidParameterError, match="`probe='next'` needs lookahead='fused'"):
        MARIGOLD(probe="next")
    with pytest.raises(InvalidParameterError, match="`estimate='symmetric'` needs lookahead='trial'"):
        MARIGOLD(estimate="symmetric", lookahead="fused")
    with pytest.raises(InvalidParameterError, match="`hypergradient='exact'` needs lookahead='trial'"):
        MARIGOLD(hypergradient="exact", lookahead="fused")
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    with pytest.raises(InvalidInputError, match="`per` must be 'model'"):
        mtl_core.step(problem, batch, optimizer, MARIGOLD(), per="layer")
    with pytest.raises(InvalidInputError, match="needs one batch on one process"):
        mtl_core.step(problem, mtl_core.MicroBatches([batch]), optimizer, MARIGOLD(hypergradient="exact"))
    with pytest.raises(InvalidParameterError, match="`beta` must"):
        MARIGOLD(beta=0.0)


def test_losses_under_the_bound_are_refused_by_name() -> None:
    model = nn.Linear(1, 1)
    problem = mtl_core.Problem(
        model, lambda m, x: torch.stack([m(x).square().sum() + 1.0, -m(x).square().sum() - 2.0]), shared=model,
        tasks=("good", "bad"),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(InvalidInputError, match="bad: -"):
        mtl_core.step(problem, torch.ones(1, 1), optimizer, MARIGOLD())
    mtl_core.step(problem, torch.ones(1, 1), optimizer, MARIGOLD(bound=[0.0, -50.0]))
