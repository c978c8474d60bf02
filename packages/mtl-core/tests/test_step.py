from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from mtl_core import (
    Aggregator,
    DetachedLossError,
    Event,
    InvalidInputError,
    InvalidJacobianError,
    InvalidParameterError,
    LossWeighting,
    Method,
    NonFiniteLossError,
    Problem,
    SkippedUpdate,
    StepOptions,
    StepReport,
    TaskGradients,
    Weighting,
    individual_progress,
    step,
)
from mtl_core.extension import begin, collect_batch, finish
from mtl_core.testing import TwoLayers, reference_jacobian, small_problem


class Fixed:
    """A weighting that ignores the gradients."""

    def __init__(self, *weights: float) -> None:
        self._weights = torch.tensor(weights, dtype=torch.float64)

    def weights(self, gramian: Tensor) -> Tensor:
        return self._weights


class FixedLosses:
    """The same weights on the losses."""

    needs = "losses"
    takes_present = True

    def __init__(self, *weights: float) -> None:
        self._weights = torch.tensor(weights, dtype=torch.float64)

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return (losses * self._weights).sum()


def fixed_aggregator(*weights: float) -> Callable[[Tensor], Tensor]:
    return lambda jacobian: torch.tensor(weights, dtype=jacobian.dtype) @ jacobian


def gradients_after(problem: Problem, batch: Tensor, method: object, **options: object) -> dict[str, Tensor]:
    """What a step writes: with lr 1 plain descent, the parameters' change is the gradient."""
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    step(problem, batch, optimizer, method, **options)  # type: ignore[arg-type]
    change = {name: before[name] - p.detach() for name, p in problem.model.named_parameters()}
    with torch.no_grad():
        for name, p in problem.model.named_parameters():
            p.copy_(before[name])
    return change


def expected_gradients(problem: Problem, batch: Tensor, shared: list[float], heads: list[float]) -> dict[str, Tensor]:
    values = problem.losses(batch).values
    names = dict(problem.model.named_parameters())
    found = {}
    for weights, chosen in ((shared, problem.shared), (heads, problem.heads)):
        total = (values * torch.tensor(weights, dtype=values.dtype)).sum()
        gradients = torch.autograd.grad(total, chosen, retain_graph=True)
        ids = {id(p): g for p, g in zip(chosen, gradients, strict=True)}
        found.update({name: ids[id(p)] for name, p in names.items() if id(p) in ids})
    return found


WEIGHTS = [0.25, 3.0, 0.5]


@pytest.mark.parametrize("form", ["mapping", "stack", "joint"])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("heads", ["unit", "weighted"])
@pytest.mark.parametrize("kind", [Fixed, FixedLosses, fixed_aggregator])
def test_every_kind_of_method_writes_the_same(
    form: str, features: bool, heads: str, kind: Callable[..., object]
) -> None:
    problem, batch = small_problem(3, features=features, form=form)  # type: ignore[arg-type]
    method = kind(*WEIGHTS)
    if kind is fixed_aggregator and heads == "weighted":
        with pytest.raises(InvalidParameterError, match="needs a method that gives weights"):
            gradients_after(problem, batch, method, heads=heads)
        return
    found = gradients_after(problem, batch, method, heads=heads)
    expected = expected_gradients(problem, batch, WEIGHTS, WEIGHTS if heads == "weighted" else [1.0, 1.0, 1.0])
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_gradients_of_the_last_step_do_not_linger() -> None:
    problem, batch = small_problem()
    for p in problem.model.parameters():
        p.grad = torch.full_like(p, 1e6)
    found = gradients_after(problem, batch, Fixed(1.0, 1.0))
    expected = expected_gradients(problem, batch, [1.0, 1.0], [1.0, 1.0])
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [Fixed(1.0, 2.0), FixedLosses(1.0, 2.0), fixed_aggregator(1.0, 2.0)])
def test_clipping_comes_after_writing_for_every_kind(method: object) -> None:
    problem, batch = small_problem()
    whole = gradients_after(problem, batch, method)
    clipped = gradients_after(problem, batch, method, max_norm=1e-3)
    names = problem.shared_names
    assert float(torch.cat([whole[n].reshape(-1) for n in names]).norm()) > 1e-3
    assert float(torch.cat([clipped[n].reshape(-1) for n in names]).norm()) == pytest.approx(1e-3, rel=1e-2)
    for name in whole.keys() - set(names):
        assert torch.equal(whole[name], clipped[name])


@pytest.mark.parametrize("method", [Fixed(1.0, 2.0), FixedLosses(1.0, 2.0), fixed_aggregator(1.0, 2.0)])
@pytest.mark.parametrize("features", [False, True])
def test_a_gradient_scaler_changes_nothing_but_range(method: object, features: bool) -> None:
    problem, batch = small_problem(features=features)
    plain = gradients_after(problem, batch, method)
    scaled = gradients_after(problem, batch, method, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))
    off = gradients_after(problem, batch, method, scaler=torch.amp.GradScaler("cpu", enabled=False))
    for name in plain:
        torch.testing.assert_close(scaled[name], plain[name], rtol=1e-6, atol=1e-9)  # scaled losses are float32
        torch.testing.assert_close(off[name], plain[name], rtol=1e-6, atol=1e-9)


def test_weights_see_unscaled_gradients() -> None:
    problem, batch = small_problem()
    seen = []

    class Watch:
        def weights(self, gramian: Tensor) -> Tensor:
            seen.append(gramian)
            return torch.ones(len(gramian))

    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    step(problem, batch, optimizer, Watch())
    report = step(problem, batch, optimizer, Watch(), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(
        report.losses, problem.losses(batch).values.detach(), rtol=1e-5, atol=0.0, check_dtype=False
    )


def overflowing(parameter: float) -> tuple[Problem, torch.optim.Optimizer]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, parameter)

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x).sum()
        return torch.stack([y, (y * 0).abs().sqrt() + y])

    problem = Problem(model, losses, shared=model, tasks=("a", "b"))
    return problem, torch.optim.SGD(model.parameters(), lr=1.0)


def test_overflow_under_a_scaler_is_skipped_and_said() -> None:
    problem, optimizer = overflowing(1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    report = step(problem, torch.ones(1, 1), optimizer, Fixed(1.0, 1.0), scaler=scaler)
    assert problem.model.weight.tolist() == [[1.0]]
    assert scaler.get_scale() == 4.0
    assert report.weights is None
    (event,) = report.events
    assert isinstance(event, SkippedUpdate)
    assert isinstance(event, Event)
    assert event.as_dict() == {"kind": "skipped_update", "scale": 4.0}


def test_overflow_without_a_scaler_is_an_error_and_nothing_is_updated() -> None:
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False)):
        problem, optimizer = overflowing(1.0)
        with pytest.raises(InvalidJacobianError, match=r"tasks \['b'\].*scaler"):
            step(problem, torch.ones(1, 1), optimizer, Fixed(1.0, 1.0), scaler=scaler)
        assert problem.model.weight.tolist() == [[1.0]]


def test_report_holds_losses_weights_and_gramian() -> None:
    problem, batch = small_problem()
    jacobian = reference_jacobian(problem, batch)
    losses = problem.losses(batch).values.detach()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    report = step(problem, batch, optimizer, Fixed(1.0, 2.0))
    assert isinstance(report, StepReport)
    assert report.tasks == ("task0", "task1")
    torch.testing.assert_close(report.losses, losses)
    assert not report.losses.requires_grad
    assert report.weights is not None
    assert report.weights.tolist() == [1.0, 2.0]
    assert report.gramian is not None
    torch.testing.assert_close(report.gramian, jacobian @ jacobian.T)
    assert report.events == ()


def test_an_update_without_weights_says_how_each_task_fares() -> None:
    problem, batch = small_problem(3)
    jacobian = collect_batch(problem, batch).matrix.double()
    direction = jacobian[0] - 2 * jacobian[1]
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    assert step(problem, batch, optimizer, lambda j: j[0] - 2 * j[1]).progress is None
    report = step(problem, batch, optimizer, lambda j: j[0] - 2 * j[1], measure_progress=True)
    assert report.weights is None
    assert report.progress is not None
    expected = torch.cosine_similarity(jacobian, direction.expand_as(jacobian), dim=1)
    assert torch.allclose(report.progress, expected, atol=1e-5)
    weighted = step(problem, batch, optimizer, Fixed(1.0, -2.0, 0.0))
    assert weighted.progress is None
    assert weighted.weights is not None
    same = individual_progress(None, weighted.weights, gramian=weighted.gramian)
    assert torch.allclose(same, report.progress, atol=1e-5)


class OnePresent:
    """Task ``a`` has data in this batch and ``b`` has not."""

    def __call__(self, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"a": model(x)[1][0].square().mean()}


@pytest.mark.parametrize("method", [Fixed(2.0, 5.0), FixedLosses(2.0, 5.0)])
def test_an_absent_task_is_a_zero_row(method: object) -> None:
    torch.manual_seed(0)
    model = TwoLayers()
    problem = Problem(model, OnePresent(), shared="trunk", tasks=("a", "b"))
    batch = torch.randn(2, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.heads[1].parameters()]
    report = step(problem, batch, optimizer, method)  # type: ignore[arg-type]
    assert math.isnan(report.losses[1])
    assert math.isfinite(report.losses[0])
    if report.gramian is not None:
        assert report.gramian[1].tolist() == [0.0, 0.0]
    for p, old in zip(model.heads[1].parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_an_absent_task_is_refused_by_a_method_that_cannot_do_without() -> None:
    class NeedsAll:
        needs = "losses"

        def __call__(self, losses: Tensor) -> Tensor:
            return losses.log().sum()

    problem = Problem(TwoLayers(), OnePresent(), shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=r"NeedsAll.*got tasks at \[0\] of 2"):
        step(problem, torch.ones(2, 3, dtype=torch.float64), optimizer, NeedsAll())


def test_after_step_sees_the_losses_before_and_after() -> None:
    seen: list[Tensor] = []

    class Learns(FixedLosses):
        def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
            seen.extend([before, after()])

    problem, batch = small_problem()
    first = problem.losses(batch).values.detach()
    step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=0.1), Learns(1.0, 1.0))
    assert torch.equal(seen[0], first)
    assert torch.equal(seen[1], problem.losses(batch).values.detach())
    assert not torch.equal(seen[0], seen[1])


def test_losses_and_events_reach_a_weighting_that_asks() -> None:
    class Takes:
        takes_losses = True

        def weights(self, gramian: Tensor, *, losses: Tensor) -> Tensor:
            return 1.0 / losses

        def pop_events(self) -> tuple[Event, ...]:
            return (SkippedUpdate(1.0),)

    problem, batch = small_problem()
    report = step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=0.1), Takes())
    assert report.weights is not None
    torch.testing.assert_close(report.weights, 1.0 / report.losses)
    assert report.events == (SkippedUpdate(1.0),)


class Whole:
    """A method that owns its step."""

    def __init__(self) -> None:
        self.seen: list[StepOptions] = []

    def step(
        self, problem: Problem, batch: object, optimizer: torch.optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        self.seen.append(options or StepOptions())
        return StepReport(torch.zeros(2), None, None, problem.tasks)


class Bare:
    """The same, without options."""

    def step(self, problem: Problem, batch: object, optimizer: torch.optim.Optimizer) -> StepReport:
        return StepReport(torch.zeros(2), None, None, problem.tasks)


def test_a_method_owns_its_step_and_gets_the_options() -> None:
    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    method = Whole()
    step(problem, batch, optimizer, method)
    step(problem, batch, optimizer, method, max_norm=2.0, heads="weighted")
    assert method.seen == [StepOptions(), StepOptions(max_norm=2.0, heads="weighted")]
    step(problem, batch, optimizer, Bare())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="must take `options`"):
        step(problem, batch, optimizer, Bare(), max_norm=2.0)  # type: ignore[arg-type]


def test_protocols_are_structural() -> None:
    assert isinstance(Fixed(1.0), Weighting)
    assert isinstance(FixedLosses(1.0), LossWeighting)
    assert isinstance(fixed_aggregator(1.0), Aggregator)
    assert isinstance(Whole(), Method)
    assert not isinstance(Fixed(1.0), Method)


class TestBadInput:
    @pytest.mark.parametrize("method", [Fixed(1.0, 1.0), FixedLosses(1.0, 1.0)])
    def test_nan_loss_updates_nothing(self, method: object) -> None:
        problem, batch = small_problem()
        before = [p.detach().clone() for p in problem.model.parameters()]
        optimizer = torch.optim.Adam(problem.model.parameters())
        with pytest.raises(NonFiniteLossError, match="'task0' is nan"):
            step(problem, batch * math.nan, optimizer, method)  # type: ignore[arg-type]
        assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))
        assert not optimizer.state

    @pytest.mark.parametrize("method", [Fixed(1.0, 1.0), FixedLosses(1.0, 1.0)])
    def test_detached_loss(self, method: object) -> None:
        model = TwoLayers()

        def losses(model: nn.Module, x: Tensor) -> Tensor:
            z, outputs = model(x)
            return torch.stack([outputs[0].mean(), model.heads[1](z.detach()).mean()])

        problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(DetachedLossError, match=r"\['b'\]"):
            step(problem, torch.ones(2, 3, dtype=torch.float64), optimizer, method)  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", [Fixed(1.0, 1.0), FixedLosses(1.0, 1.0)])
    def test_losses_of_another_model(self, method: object) -> None:
        """The usual mistake of a losses function that does not use its first argument."""
        used, given = TwoLayers(), TwoLayers()
        problem = Problem(given, lambda _, x: torch.stack(used(x)[1]).mean((1, 2)), shared="trunk", tasks=("a", "b"))
        optimizer = torch.optim.SGD(given.parameters(), lr=0.1)
        with pytest.raises(DetachedLossError, match=r"\['a', 'b'\].* another model than the one that"):
            step(problem, torch.ones(2, 3, dtype=torch.float64), optimizer, method)  # type: ignore[arg-type]

    def test_an_optimiser_that_evaluates_the_loss_itself(self) -> None:
        problem, batch = small_problem()
        optimizer = torch.optim.LBFGS(problem.model.parameters())
        with pytest.raises(InvalidInputError, match=r"must make its step from gradients, got LBFGS"):
            step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))

    def test_not_a_method(self) -> None:
        problem, batch = small_problem()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        with pytest.raises(InvalidInputError, match=r"callable on a Jacobian.*got int"):
            step(problem, batch, optimizer, 3)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("method", "message"),
        [
            (lambda jacobian: jacobian, r"update of shape \(36,\), got \(2, 36\)"),
            (lambda jacobian: None, "got NoneType"),
            (Fixed(1.0, 1.0, 1.0), r"`method.weights` must return weights of shape \(2,\), got \(3,\)"),
            (Fixed(1.0, math.nan), "`weights` must be finite"),
        ],
    )
    def test_what_a_method_returns(self, method: object, message: str) -> None:
        problem, batch = small_problem()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        with pytest.raises(InvalidInputError, match=message):
            step(problem, batch, optimizer, method)  # type: ignore[arg-type]

    def test_loss_weighting_that_returns_no_scalar(self) -> None:
        class Vector(FixedLosses):
            def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
                return losses

        problem, batch = small_problem()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        with pytest.raises(InvalidInputError, match=r"Vector must return one scalar.*got \(2,\)"):
            step(problem, batch, optimizer, Vector(1.0, 1.0))

    def test_options(self) -> None:
        with pytest.raises(InvalidParameterError, match="`heads` must be one of 'unit', 'weighted', got 'both'"):
            StepOptions(heads="both")  # type: ignore[arg-type]
        with pytest.raises(InvalidParameterError, match="`max_norm` must be positive, got 0"):
            StepOptions(max_norm=0)


@pytest.mark.parametrize("method", [Fixed(1.0, 2.0), FixedLosses(1.0, 2.0), fixed_aggregator(1.0, 2.0)])
def test_parameters_that_take_no_part_are_named(method: object) -> None:
    model = TwoLayers()
    unused = nn.Module()
    unused.weight, unused.bias = nn.Parameter(torch.empty(0, 2)), nn.Parameter(torch.empty(0))
    model.trunk.add_module("unused", unused)  # of no use and of no size
    model.trunk.add_module("spare", nn.Linear(2, 2))
    model.trunk[0].bias.requires_grad_(False)

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        z = model.trunk[2](model.trunk[1](model.trunk[0](x)))
        return torch.stack([head(z).mean() for head in model.heads])

    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = step(problem, torch.randn(3, 3, dtype=torch.float64), optimizer, method)  # type: ignore[arg-type]
    names = ("trunk.unused.weight", "trunk.unused.bias", "trunk.spare.weight", "trunk.spare.bias")
    assert report.skipped == ("trunk.0.bias", *names)
    for name in report.skipped:
        assert torch.equal(dict(model.named_parameters())[name], before[name])
    assert not torch.equal(model.trunk[0].weight, before["trunk.0.weight"])


def test_hooks_hear_of_each_step_once() -> None:
    class Nested:
        def step(self, problem: Problem, batch: object, optimizer: torch.optim.Optimizer) -> StepReport:
            return step(problem, batch, optimizer, Fixed(1.0, 1.0))

    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    seen: list[StepReport] = []
    handle = problem.register_report_hook(seen.append)
    reports = [step(problem, batch, optimizer, method) for method in (Nested(), Fixed(1.0, 1.0), FixedLosses(1.0, 1.0))]
    assert all(a is b for a, b in zip(seen, reports, strict=True))
    with pytest.raises(NonFiniteLossError):
        step(problem, batch * math.nan, optimizer, Fixed(1.0, 1.0))
    handle.remove()
    step(problem, batch, optimizer, Fixed(1.0, 1.0))
    assert len(seen) == 3


class TestGradientsAreUsedUp:
    def _made(self, keep: Literal["jacobian", "gramian"]) -> tuple[TaskGradients, list[bool]]:
        """The gradients after a step that was finished from them, and what was gone when the optimiser stepped."""
        problem, batch = small_problem(2)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        options = StepOptions(keep=keep)
        begin(problem, optimizer, options)
        gradients = collect_batch(problem, batch, options=options)
        held = [weakref.ref(gradients.matrix)] if keep == "jacobian" else []
        gone: list[bool] = []
        optimizer.register_step_pre_hook(lambda *_: gone.extend(ref() is None for ref in held))
        finish(problem, batch, optimizer, Fixed(0.5, 0.5), gradients, options=options)
        return gradients, gone

    def test_before_the_optimiser_steps(self) -> None:
        assert self._made("jacobian")[1] == [True]

    @pytest.mark.parametrize("keep", ["jacobian", "gramian"])
    def test_and_refused_afterwards(self, keep: Literal["jacobian", "gramian"]) -> None:
        gradients, _ = self._made(keep)
        for read in (lambda: gradients.matrix, lambda: gradients.mean, lambda: gradients.combine(torch.ones(2))):
            with pytest.raises(InvalidInputError, match="has let go of them"):
                read()
        with pytest.raises(InvalidInputError, match="has let go of them"):
            gradients.rescale(torch.tensor(2.0))

    def test_what_stays(self) -> None:
        gradients, _ = self._made("jacobian")
        assert torch.isfinite(gradients.losses).all()
        assert gradients.host_gramian.shape == (2, 2)
        assert gradients.untouched == ()
