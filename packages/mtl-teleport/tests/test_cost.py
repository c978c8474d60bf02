from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import InvalidInputError, InvalidParameterError, NonFiniteLossError, Problem, StepOptions, StepReport
from mtl_core.extension import Trace, collect_problem
from mtl_teleport import COST, AnyMeanConflict, Dense, DominatedConflict, LoRA, TeleportReport, WeakConflict
from mtl_teleport.search_context import task_gramian
from mtl_teleport.triggers import Trigger

Make = Callable[..., tuple[Problem, Any]]


DESIGNS: dict[str, dict[str, Any]] = {
    "exact": {"aim": None},
    "ascent": {"sharpness": "ascent", "aim": None},
    "random": {"sharpness": "random", "aim": None},
    "newton": {"sharpness": "newton", "aim": None},
    "look-ahead": {"sharpness": "look-ahead", "aim": None},
    "flat": {"sharpness": "flat", "aim": None},
    "conflict": {"conflict_weight": 1.0, "aim": None},
    "conflict-first": {"conflict_weight": 1.0, "hold_sharpness": True, "aim": None},
}


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


class Never(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return False


class Equal:
    """A weighting that counts its calls in its state."""

    def __init__(self) -> None:
        self.calls = 0
        self.epochs: list[int] = []

    def weights(self, gramian: Tensor) -> Tensor:
        self.calls += 1
        return torch.ones(len(gramian), dtype=torch.float64)

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class LogSum:
    """A loss weighting."""

    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.log().sum()


class WholeStep:
    """A method that owns its step."""

    def step(
        self, problem: Problem, batch: Any, optimizer: torch.optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        optimizer.zero_grad()
        losses = problem.losses(batch)
        losses.values.sum().backward()
        optimizer.step()
        return StepReport(losses.values.detach(), None, None, problem.tasks)


def _aggregate(jacobian: Tensor) -> Tensor:
    return jacobian.sum(dim=0)


METHODS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "weighting": Equal,
    "loss weighting": LogSum,
    "callable": lambda: _aggregate,
    "method": WholeStep,
}


def _optimizer(problem: Problem) -> torch.optim.Optimizer:
    return torch.optim.Adam(problem.model.parameters(), lr=1e-2)


def _same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def _teleports(report: StepReport) -> list[TeleportReport]:
    return [event for event in report.events if isinstance(event, TeleportReport)]


def test_it_is_a_method() -> None:
    assert isinstance(COST(), mtl_core.Method)


class TestStep:
    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize(
        "limits", [{"trigger": Never(), "max_per_epoch": None}, {"trigger": Always(), "start_after": 5}]
    )
    def test_without_a_teleport_it_is_the_wrapped_method(self, conflicting: Make, name: str, limits: Any) -> None:
        (left, batch), (right, _) = conflicting(), conflicting()
        cost, plain = COST(METHODS[name](), **limits), METHODS[name]()
        cost.start_epoch(0)
        first, second = _optimizer(left), _optimizer(right)
        for step in range(3):
            torch.manual_seed(step)
            report = mtl_core.step(left, batch, first, cost)
            state = torch.get_rng_state()
            torch.manual_seed(step)
            if plain is None:
                # The sum of the losses by task gradients: the same to rounding.
                expected = mtl_core.step(right, batch, second, _aggregate)
            else:
                expected = mtl_core.step(right, batch, second, plain)
            assert torch.equal(torch.get_rng_state(), state)
            torch.testing.assert_close(report.losses, expected.losses)
            assert report.events == ()
        if plain is None:
            for a, b in zip(left.model.parameters(), right.model.parameters(), strict=True):
                torch.testing.assert_close(a, b)
        else:
            for a, b in zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("name", METHODS)
    def test_a_step_with_a_teleport_is_the_step_from_the_new_point(self, conflicting: Make, name: str) -> None:
        """Bit for bit, buffers and random numbers included, for every method that works on task gradients."""
        (left, batch), (right, _) = conflicting(), conflicting()
        cost = COST(METHODS[name](), trigger=Always(), htr="keep")
        cost.start_epoch(0)
        first, second = _optimizer(left), _optimizer(right)
        torch.manual_seed(3)
        moved: dict[str, Tensor] = {}

        def remember(*_: object) -> None:
            moved.update({n: p.detach().clone() for n, p in left.named_shared.items()})

        first.register_step_pre_hook(remember)
        (report,) = _teleports(mtl_core.step(left, batch, first, cost))
        state = torch.get_rng_state()
        assert report.accepted
        with torch.no_grad():
            for n, p in right.named_shared.items():
                assert not torch.equal(p, moved[n]) or p.ndim < 2
                p.copy_(moved[n])
        torch.manual_seed(3)
        mtl_core.step(right, batch, second, cost)  # its one teleport is used up
        assert torch.equal(torch.get_rng_state(), state)
        if name in ("none", "loss weighting"):
            # Their plain step is one backward pass of the weighted sum: the same to rounding, which Adam enlarges.
            for a, b in zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        else:
            assert _same(left.model, right.model)

    def test_identities_survive(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        model, optimizer = problem.model, _optimizer(problem)
        cost = COST(trigger=Always(), max_per_epoch=None, htr="keep")
        mtl_core.step(problem, batch, optimizer, _aggregate)
        parameters, modules = [id(p) for p in model.parameters()], [id(m) for m in model.modules()]
        states = [id(optimizer.state[p]["exp_avg"]) for p in model.parameters()]
        names, flags = [n for n, _ in model.named_parameters()], [m.training for m in model.modules()]
        assert _teleports(mtl_core.step(problem, batch, optimizer, cost))[0].accepted
        assert [id(p) for p in model.parameters()] == parameters
        assert [id(m) for m in model.modules()] == modules
        assert [id(optimizer.state[p]["exp_avg"]) for p in model.parameters()] == states
        assert [n for n, _ in model.named_parameters()] == names
        assert [m.training for m in model.modules()] == flags
        assert all(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("search", ["projected", "penalty"])
    @pytest.mark.parametrize("sharpness", ["random", "ascent", "exact"])
    def test_losses_hold_still(self, conflicting: Make, search: Any, sharpness: Any) -> None:
        problem, batch = conflicting()
        cost = COST(trigger=Always(), max_per_epoch=None, search=search, sharpness=sharpness, max_drift=0.01)
        (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
        assert report.accepted
        assert 0 <= report.drift <= 0.01
        relative = [abs(b - a) / a for a, b in zip(report.losses_before, report.losses_after, strict=True)]
        assert sum(relative) / 2 == pytest.approx(report.drift, rel=1e-6)
        assert report.length > 0

    def test_the_gradient_grows_and_the_conflict_shrinks(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        problem.model.eval()  # the same function at both ends of the comparison
        cost = COST(trigger=DominatedConflict(), max_per_epoch=None, adapter=Dense())
        (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
        assert report.accepted
        assert report.trigger == "DominatedConflict"
        assert report.min_cosine_before < 0
        assert report.min_cosine_after is not None
        assert report.mean_norm_after is not None
        assert report.min_cosine_after > report.min_cosine_before
        assert report.mean_norm_after > report.mean_norm_before

    def test_a_rolled_back_teleport_is_a_plain_step(self, conflicting: Make) -> None:
        (left, batch), (right, _) = conflicting(), conflicting()
        cost = COST(
            Equal(),
            trigger=Always(),
            max_per_epoch=None,
            search="penalty",
            drift_weight=0.0,
            max_drift=1e-9,
            backtracks=0,
        )
        torch.manual_seed(0)
        (report,) = _teleports(mtl_core.step(left, batch, _optimizer(left), cost))
        state = torch.get_rng_state()
        assert not report.accepted
        assert "exceeds max_drift 1e-09" in report.reason
        assert (report.sigma, report.length, report.cosines_after, report.min_cosine_after) == (None, 0.0, None, None)
        torch.manual_seed(0)
        mtl_core.step(right, batch, _optimizer(right), Equal())
        assert torch.equal(torch.get_rng_state(), state)
        assert _same(left.model, right.model)

    def test_a_point_that_fails_in_training_mode_is_left_exactly(self, conflicting: Make) -> None:
        (left, batch), (right, _) = conflicting(), conflicting()
        fine = left.losses

        def broken_once_moved(batch: Any, *, parameters: Any = None) -> Any:
            found = fine(batch, parameters=parameters)
            start = right.named_shared
            own = all(isinstance(p, nn.Parameter) for p in left.shared)  # not while a search looks elsewhere
            moved = own and any(not torch.equal(p, start[n]) for n, p in left.named_shared.items())
            if moved and left.model.training:
                object.__setattr__(found, "outputs", tuple(out * math.nan for out in found.outputs))
            return found

        left.losses = broken_once_moved  # type: ignore[method-assign]
        torch.manual_seed(0)
        (report,) = _teleports(
            mtl_core.step(left, batch, _optimizer(left), COST(Equal(), trigger=Always(), max_per_epoch=None))
        )
        assert not report.accepted
        assert report.reason.startswith("at the new point in training mode: every task's loss must be finite")
        torch.manual_seed(0)
        mtl_core.step(right, batch, _optimizer(right), Equal())
        assert _same(left.model, right.model)

    def test_an_error_in_the_search_leaves_everything(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        before, flags = copy.deepcopy(problem.model.state_dict()), [m.training for m in problem.model.modules()]
        fine, calls = problem.losses, 0

        def fail_later(batch: Any, *, parameters: Any = None) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise RuntimeError("out of memory")
            return fine(batch, parameters=parameters)

        problem.losses = fail_later  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="out of memory"):
            mtl_core.step(problem, batch, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None))
        assert [m.training for m in problem.model.modules()] == flags
        assert all(torch.equal(p, before[n]) for n, p in problem.model.named_parameters())

    def test_history_is_reused_in_the_step(self, conflicting: Make) -> None:
        found = {}
        for htr in ("paper", "keep", "reset", "descent", "released"):
            problem, batch = conflicting()
            optimizer = _optimizer(problem)
            for _ in range(3):
                torch.manual_seed(0)
                mtl_core.step(problem, batch, optimizer, _aggregate)
            torch.manual_seed(0)
            cost = COST(_aggregate, trigger=Always(), max_per_epoch=None, htr=htr)  # type: ignore[arg-type]
            (report,) = _teleports(mtl_core.step(problem, batch, optimizer, cost))
            assert report.sigma is not None
            assert -1 <= report.sigma <= 1
            found[htr] = torch.cat([p.detach().flatten() for p in problem.shared])
            heads = torch.cat([p.detach().flatten() for p in problem.heads])
            found.setdefault("heads", heads)
            assert torch.equal(heads, found["heads"]), "heads keep their memory"
        assert not torch.equal(found["paper"], found["keep"])
        assert not torch.equal(found["paper"], found["descent"])
        assert not torch.equal(found["reset"], found["keep"])
        negative = report.sigma <= 0
        torch.testing.assert_close(found["released"], found["reset" if negative else "paper"])

    def test_an_absent_task(self, conflicting: Make) -> None:
        whole, batch = conflicting()
        problem = Problem(
            whole.model,
            lambda model, b: {"small": (model.small(model.trunk(b[0])) + b[1]).square().mean()},
            shared="trunk",
            tasks=whole.tasks,
        )
        (report,) = _teleports(
            mtl_core.step(problem, batch, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None))
        )
        assert report.accepted
        assert math.isnan(report.losses_before[0])
        assert report.as_dict()["losses_before"][0] is None
        assert report.as_dict()["cosines_before"] == [None, pytest.approx(1.0)]

    def test_a_loss_that_is_not_finite_is_an_error(self, conflicting: Make) -> None:
        problem, (x, y) = conflicting()
        with pytest.raises(NonFiniteLossError):
            mtl_core.step(problem, (x, y * math.nan), _optimizer(problem), COST(max_per_epoch=None))

    def test_probe_batches(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        problem.model.eval()
        halves = [tuple(t[:16] for t in batch), tuple(t[16:] for t in batch)]
        cost = COST(trigger=Always(), max_per_epoch=None, probe_batches=halves, rounds=3)
        (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
        assert report.accepted
        assert report.adapter_steps <= 6
        with torch.no_grad():
            again, _ = conflicting()
            again.model.eval()
            mean = torch.stack([again.losses(half).values for half in halves]).mean(0)
        assert list(report.losses_before) == pytest.approx(mean.tolist())

    def test_probe_batches_that_turn_out_empty(self, conflicting: Make) -> None:
        class Empty:
            def __iter__(self) -> Iterator[Any]:
                return iter(())

        problem, batch = conflicting()
        cost = COST(trigger=Always(), max_per_epoch=None, probe_batches=Empty())
        with pytest.raises(InvalidInputError, match="`probe_batches` must yield at least one batch"):
            mtl_core.step(problem, batch, _optimizer(problem), cost)

    def test_losses_that_fix_every_direction(self) -> None:
        """With two independent losses in two dimensions nothing can move under the constraints."""
        model = nn.Linear(2, 1, bias=False).double()
        problem = Problem(model, lambda m, x: m(x)[:, 0].square(), shared=model, tasks=("a", "b"))
        x = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
        (report,) = _teleports(
            mtl_core.step(problem, x, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None, adapter=Dense()))
        )
        assert not report.accepted
        assert report.reason == "the displacement is zero"

    def test_features_mode(self) -> None:
        problem, batch = mtl_core_problem()
        (report,) = _teleports(
            mtl_core.step(problem, batch, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None))
        )
        assert report.accepted


def mtl_core_problem() -> tuple[Problem, Tensor]:
    from mtl_core.testing import small_problem

    return small_problem(3, features=True)


class TestLimits:
    def test_someone_must_tell_of_epochs(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        with pytest.raises(InvalidInputError, match=r"cost\.start_epoch\(epoch\)"):
            mtl_core.step(problem, batch, _optimizer(problem), COST())

    def test_one_per_epoch_from_an_epoch_on(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        method = Equal()
        cost = COST(method, trigger=Always(), start_after=1, steps_per_epoch=2, max_steps=1)
        optimizer = _optimizer(problem)
        found = [len(mtl_core.step(problem, batch, optimizer, cost).events) for _ in range(6)]
        assert found == [0, 0, 1, 0, 1, 0]
        assert method.epochs == [0, 1, 2], "handed on"

    def test_complex_parameters_are_refused_by_name(self) -> None:
        class Rotation(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.phase = nn.Parameter(torch.ones(2, 2, dtype=torch.complex128))
                self.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))

        model = Rotation()
        problem = Problem(
            model, lambda m, x: (m.weight @ x).square().sum(0) * m.phase.abs().sum(), shared=model, tasks=("a", "b")
        )
        x, cost = torch.ones(2, 2, dtype=torch.float64), COST(trigger=Always(), max_per_epoch=None)
        with pytest.raises(InvalidInputError, match="must hold real parameters to be teleported, got complex phase"):
            mtl_core.step(problem, x, _optimizer(problem), cost)
        part = Problem(model, problem._loss_fn, shared="weight", tasks=("a", "b"))
        assert _teleports(mtl_core.step(part, x, _optimizer(part), cost))[0].losses_before == (32.0, 32.0)


class TestSettingsOfTheStep:
    """A teleport under whatever else a step may be asked for."""

    def test_micro_batches(self, conflicting: Make) -> None:
        problem, (x, y) = conflicting()
        parts = mtl_core.MicroBatches([(x[:16], y[:16]), (x[16:], y[16:])])
        (report,) = _teleports(
            mtl_core.step(problem, parts, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None))
        )
        assert report.accepted
        assert 0 < report.drift <= 0.02

    @pytest.mark.parametrize("keep", ["gramian", "jacobian"])
    @pytest.mark.parametrize("drift", [0.02, 1e-9])
    def test_without_the_jacobian(self, conflicting: Make, keep: Any, drift: float) -> None:
        problem, batch = conflicting()
        cost = COST(
            Equal(),
            trigger=Always(),
            max_per_epoch=None,
            search="penalty",
            drift_weight=0.0,
            max_drift=drift,
            backtracks=0,
            lr=1e-4,
        )
        (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost, keep=keep))
        assert report.accepted == (drift > 1e-6)
        assert report.sigma is None or -1 <= report.sigma <= 1

    def test_gramian_only_is_the_same_step(self, conflicting: Make) -> None:
        found = []
        for keep in ("jacobian", "gramian"):
            torch.manual_seed(0)
            problem, batch = conflicting()
            cost = COST(Equal(), trigger=Always(), max_per_epoch=None)
            report = mtl_core.step(problem, batch, _optimizer(problem), cost, keep=keep)  # type: ignore[arg-type]
            found.append((torch.cat([p.detach().flatten() for p in problem.shared]), _teleports(report)[0].sigma))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-7)
        assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)

    def test_features_only(self) -> None:
        problem, batch = mtl_core_problem()
        cost = COST(Equal(), trigger=Always(), max_per_epoch=None)
        assert _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost, keep="features"))

    @pytest.mark.parametrize("design", DESIGNS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16])
    @pytest.mark.parametrize("around", ["losses", "step"])
    def test_autocast(self, conflicting: Make, dtype: torch.dtype, around: str, design: str) -> None:
        """Low-precision copies of the old values must not outlive the move, in an autocast region around the step."""
        whole, batch = conflicting(torch.float32)
        whole.model.eval()

        def cast(model: nn.Module, batch: Any) -> Any:
            with torch.autocast("cpu", dtype=dtype, enabled=around == "losses"):
                found = whole._loss_fn(model, batch)
            return {name: value.float() for name, value in found.items()}

        problem = Problem(whole.model, cast, shared="trunk", tasks=whole.tasks)
        cost = COST(Equal(), trigger=Always(), max_per_epoch=None, lr=1e-2, **DESIGNS[design])
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0 if design != "look-ahead" else 1e-3)
        with torch.autocast("cpu", dtype=dtype, enabled=around == "step"):
            (report,) = _teleports(mtl_core.step(problem, batch, optimizer, cost))
            seen = problem.losses(batch).values.detach()
        with torch.autocast("cpu", dtype=dtype, enabled=around == "step"):
            fresh = problem.losses(batch).values.detach()
        assert report.accepted
        assert report.length > 0
        assert torch.equal(seen, fresh)
        assert {p.dtype for p in problem.shared} == {torch.float32}
        assert report.norms_after is not None
        gradients = collect_problem(problem, problem.losses(batch))
        if around == "losses" and design != "look-ahead":  # whose step moves on from there
            assert report.norms_after == pytest.approx(gradients.norms.tolist(), rel=1e-5)

    @pytest.mark.parametrize("design", DESIGNS)
    def test_gradient_scaler(self, conflicting: Make, design: str) -> None:
        """The scale drops out, in the search as in the step."""
        found = []
        for scale in (None, 2.0**12):
            torch.manual_seed(0)
            problem, batch = conflicting()
            scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
            cost = COST(Equal(), trigger=Always(), max_per_epoch=None, **DESIGNS[design])
            report = mtl_core.step(problem, batch, _optimizer(problem), cost, scaler=scaler)
            found.append((torch.cat([p.detach().flatten() for p in problem.shared]), _teleports(report)[0]))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-7, atol=1e-8)
        assert found[0][1].search_growth == pytest.approx(found[1][1].search_growth, rel=1e-6, nan_ok=True)

    def test_an_overflow_is_skipped_without_a_teleport(self) -> None:
        model = nn.Linear(1, 1, bias=False)

        def losses(model: nn.Module, x: Tensor) -> Tensor:
            y = model(x).sum()
            return torch.stack([y, (y * 0).abs().sqrt() + y])

        problem = Problem(model, losses, shared=model, tasks=("a", "b"))
        before = model.weight.detach().clone()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        cost = COST(Equal(), trigger=Always(), max_per_epoch=None)
        report = mtl_core.step(problem, torch.ones(1, 1), _optimizer(problem), cost, scaler=scaler)
        assert [event.kind for event in report.events] == ["skipped_update"]
        assert torch.equal(model.weight, before)
        assert scaler.get_scale() == 4.0


class TestSearch:
    def test_the_path_is_reported(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        for search in ("projected", "penalty"):
            cost = COST(trigger=Always(), max_per_epoch=None, max_steps=4, aim=None, search=search)  # type: ignore[arg-type]
            (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
            assert len(report.search_losses) == len(report.search_growth) == (5 if search == "projected" else 4)
            assert report.search_losses[0] == pytest.approx(report.losses_before)
            assert report.search_growth[0] == pytest.approx(1.0)
            assert len(report.as_dict()["search_losses"][0]) == 2
            # With one batch the held losses are those of the first point, and L_t is the mean change from them.
            first = report.search_losses[0]
            changes = [sum(abs(a - b) for a, b in zip(p, first, strict=True)) / 2 for p in report.search_losses]
            assert report.search_change == pytest.approx(changes)
            assert max(changes) > 0

    def test_the_aim_sees_the_gradients_of_the_step(self, conflicting: Make) -> None:
        """In training mode, with its batch statistics and its dropout, and without a trace in the model."""
        problem, batch = conflicting()
        seen: list[Tensor] = []

        class Watch(Trigger):
            def __call__(self, gramian: Tensor) -> bool:
                seen.append(gramian)
                return len(seen) == 1  # fires in the step, and is silent in the search

        cost = COST(Equal(), trigger=Watch(), max_per_epoch=None, aim=1.0001)
        report = mtl_core.step(problem, batch, _optimizer(problem), cost)
        (event,) = _teleports(report)
        assert event.accepted
        assert event.scale == 1.0
        assert len(seen) >= 2
        # The search stopped at the point that it last looked at; there the step then computed the very same.
        assert report.gramian is not None
        torch.testing.assert_close(seen[-1], report.gramian, rtol=1e-9, atol=1e-12)

    def test_the_mode_of_the_search(self, conflicting: Make) -> None:
        """In the step's own mode its losses are the step's, batch statistics and dropout included; eval has neither."""
        found = {}
        for mode in ("train", "eval"):
            problem, batch = conflicting()
            torch.manual_seed(5)
            trace = Trace(problem.model)
            with torch.no_grad():
                own = problem.losses(batch).values.tolist()
            trace.restore()
            cost = COST(trigger=Always(), max_per_epoch=None, max_steps=3, aim=None, mode=mode)  # type: ignore[arg-type]
            (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
            assert report.accepted
            found[mode] = own, report.losses_before, report.search_losses[0]
        assert found["train"][1] == pytest.approx(found["train"][0], rel=1e-12)
        assert found["train"][2] == pytest.approx(found["train"][0], rel=1e-12)
        assert found["eval"][1] != pytest.approx(found["eval"][0], rel=1e-3)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_statistics_and_random_numbers_are_left_alone(self, conflicting: Make, mode: Any) -> None:
        problem, batch = conflicting()
        gradients = collect_problem(problem, problem.losses(batch))
        flags = [m.training for m in problem.model.modules()]
        buffers = [(b, b.clone()) for b in problem.model.buffers()]
        state = torch.get_rng_state()
        report = COST(lr=1e-2, mode=mode).teleport(problem, [batch], gradients)
        assert report.accepted
        assert [m.training for m in problem.model.modules()] == flags
        assert torch.equal(torch.get_rng_state(), state)
        for now, (tensor, value) in zip(problem.model.buffers(), buffers, strict=True):
            assert now is tensor
            assert torch.equal(now, value)

    def test_no_look_is_taken_where_the_search_sees_the_step(
        self, conflicting: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The Gramian that falls out of the search is the step's; with other probe batches it is not."""
        looks = []

        def count(*arguments: Any) -> Tensor:
            looks.append(1)
            return task_gramian(*arguments)

        monkeypatch.setattr("mtl_teleport.search_context.task_gramian", count)
        found = {}
        for name, settings in (("train", {}), ("eval", {"mode": "eval"})):
            problem, batch = conflicting()
            looks.clear()
            cost = COST(Equal(), trigger=Always(), max_per_epoch=None, aim=1.0001, **settings)  # type: ignore[arg-type]
            (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
            assert report.adapter_steps == 20  # the trigger never falls silent
            found[name] = len(looks)
        assert found["train"] == 0
        assert found["eval"] > 0

    def test_a_term_for_the_conflict(self, conflicting: Make) -> None:
        found = []
        for weight in (0.0, 100.0):
            problem, batch = conflicting()
            problem.model.eval()
            cost = COST(
                trigger=Always(),
                max_per_epoch=None,
                max_steps=100,
                aim=None,
                conflict_weight=weight,
                adapter=Dense(),
            )
            (report,) = _teleports(mtl_core.step(problem, batch, _optimizer(problem), cost))
            assert report.accepted
            assert report.min_cosine_after is not None
            assert report.min_cosine_before < -0.9
            found.append(report.min_cosine_after)
        assert found[1] > found[0] + 0.1


class TestByHand:
    def test_teleport(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        problem.model.eval()
        gradients = collect_problem(problem, problem.losses(batch))
        before = problem.losses(batch).values.detach()
        cost = COST(lr=1e-2)
        report = cost.teleport(problem, [batch], gradients)
        assert report.accepted
        assert report.losses_before == pytest.approx(before.tolist())
        assert report.losses_after == pytest.approx(problem.losses(batch).values.tolist())
        after = collect_problem(problem, problem.losses(batch))
        assert report.norms_after == pytest.approx(after.norms.tolist())
        assert report.forwards > 0
        assert report.backwards > 0

    def test_head_gradients_are_left_alone(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        gradients = collect_problem(problem, problem.losses(batch))
        COST(lr=1e-2).teleport(problem, [batch], gradients)
        assert all(p.grad is None for p in problem.model.parameters())

    def test_a_learning_rate_is_needed(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        gradients = collect_problem(problem, problem.losses(batch))
        with pytest.raises(InvalidParameterError, match="`lr` must be given"):
            COST().teleport(problem, [batch], gradients)
        assert COST().teleport(problem, [batch], gradients, lr=1e-2).accepted

    def test_no_batches(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        gradients = collect_problem(problem, problem.losses(batch))
        with pytest.raises(InvalidInputError, match="batches"):
            COST(lr=1e-2).teleport(problem, [], gradients)


class TestState:
    def test_a_fresh_object_goes_on_bit_for_bit(self, conflicting: Make) -> None:
        def make() -> COST:
            return COST(
                Equal(), trigger=WeakConflict(), steps_per_epoch=3, max_per_epoch=2, sharpness="random", max_steps=3
            )

        problem, batch = conflicting()
        optimizer, cost = _optimizer(problem), make()
        for _ in range(4):
            mtl_core.step(problem, batch, optimizer, cost)
        saved = copy.deepcopy(
            (problem.model.state_dict(), optimizer.state_dict(), cost.state_dict(), torch.get_rng_state())
        )
        events = [e for _ in range(4) for e in mtl_core.step(problem, batch, optimizer, cost).events]
        assert events

        fresh, _ = conflicting()
        again, resumed = _optimizer(fresh), make()
        fresh.model.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        resumed.load_state_dict(saved[2])
        torch.set_rng_state(saved[3])
        more = [e for _ in range(4) for e in mtl_core.step(fresh, batch, again, resumed).events]
        assert _same(problem.model, fresh.model)
        assert [e.step for e in more] == [e.step for e in events]  # type: ignore[attr-defined]
        assert resumed.own_state()["schedule"] == cost.own_state()["schedule"]

    def test_it_can_be_saved(self, tmp_path: Any) -> None:
        cost = COST(Equal())
        torch.save(cost.state_dict(), tmp_path / "state.pt")
        COST(Equal()).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    def test_a_state_of_another_method(self) -> None:
        with pytest.raises(InvalidInputError, match=r"of a COST around a function .* got one with"):
            COST(_aggregate).load_state_dict(COST(Equal()).state_dict())

    def test_a_state_of_another_form(self) -> None:
        with pytest.raises(
            InvalidInputError,
            match=r"of a COST around a FixedWeights with these options returned, got the entries .'epoch'",
        ):
            COST().load_state_dict({"epoch": 3})


def test_the_seed_decides(conflicting: Make) -> None:
    found = []
    for seed in (0, 0, 1):
        problem, batch = conflicting()
        mtl_core.step(problem, batch, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None, seed=seed))
        found.append(torch.cat([p.detach().flatten() for p in problem.shared]))
    # Dropout draws from the global generator, which goes on between the three; the move itself comes from the seed.
    assert len(found) == 3
    again = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        problem, batch = conflicting()
        mtl_core.step(problem, batch, _optimizer(problem), COST(trigger=Always(), max_per_epoch=None, seed=seed))
        again.append(torch.cat([p.detach().flatten() for p in problem.shared]))
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_the_report_is_plain_data(conflicting: Make) -> None:
    problem, batch = conflicting()
    report = mtl_core.step(problem, batch, _optimizer(problem), COST(trigger=Always(), steps_per_epoch=5))
    (event,) = report.events
    assert isinstance(event, mtl_core.Event)
    found = json.loads(json.dumps(event.as_dict(), allow_nan=False))
    assert found["kind"] == "teleport"
    assert (found["step"], found["epoch"], found["tasks"]) == (0, 0, ["big", "small"])
    assert found["seconds"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 0},
        {"max_steps": 0},
        {"lr": 0.0},
        {"sharpness": "sam"},
        {"search": "newton"},
        {"balance": "softmax"},
        {"reference": "epoch"},
        {"units": "percent"},
        {"drift_weight": -1.0},
        {"gain_weight": -0.1},
        {"conflict_weight": -1.0},
        {"aim": 0.0},
        {"max_drift": 0.0},
        {"backtracks": -1},
        {"htr": "forget"},
        {"mode": "test"},
        {"radius": 0.0},
        {"radius": 0.1, "sharpness": "exact"},
        {"max_probe_batches": 0},
        {"start_after": -1},
        {"max_per_epoch": 0},
    ],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(settings))}`"):
        COST(**settings)


def test_many_adapters_on_one_path(conflicting: Make) -> None:
    for adapter in (LoRA(rank=1), LoRA(targets="trunk.0"), Dense(), Dense(targets="*.bias")):
        problem, batch = conflicting()
        before = {n: p.detach().clone() for n, p in problem.named_shared.items()}
        cost = COST(adapter=adapter, trigger=AnyMeanConflict(), lr=1e-2)
        gradients = collect_problem(problem, problem.losses(batch))
        report = cost.teleport(problem, [batch], gradients)
        assert report.accepted
        length = math.sqrt(sum(float((p.detach() - before[n]).square().sum()) for n, p in problem.named_shared.items()))
        assert report.length == pytest.approx(length)
