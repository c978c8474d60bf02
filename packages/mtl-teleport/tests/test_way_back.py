"""Whatever raises after a move, everything is as before; and what an optimiser's copy of the weights does to one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import MicroBatches, Problem
from mtl_core.extension import collect_problem
from mtl_teleport import COST, Dense, LoRA, RandomTeleport, TeleportReport, teleportation
from mtl_teleport import moving as moving_module
from mtl_teleport import way_back as way_back_module
from mtl_teleport.way_back import WayBack

Make = Callable[..., tuple[Problem, Any]]


def always(gramian: Tensor) -> bool:
    return True


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=gramian.dtype)


class Masters(torch.optim.Optimizer):
    """Adam, or plain descent, on a copy of the weights in another precision, which it then writes over them."""

    def __init__(self, params: Any, *, lr: float, dtype: torch.dtype, entry: str = "master", adam: bool = True) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})
        self._dtype, self._entry, self._adam = dtype, entry, adam

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state[self._entry] = p.detach().to(self._dtype).clone()
                    state["exp_avg"] = torch.zeros_like(p, dtype=self._dtype)
                    state["exp_avg_sq"] = torch.zeros_like(p, dtype=self._dtype)
                g = p.grad.to(self._dtype)
                if self._adam:
                    b1, b2 = group["betas"]
                    state["exp_avg"].lerp_(g, 1 - b1)
                    state["exp_avg_sq"].lerp_(g.square(), 1 - b2)
                    g = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
                state[self._entry].sub_(g, alpha=group["lr"])
                p.copy_(state[self._entry])


class Hidden(Masters):
    """The copy is kept where no one can know of it."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._hidden: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                own = self._hidden.setdefault(id(p), p.detach().to(self._dtype).clone())
                own.sub_(p.grad.to(self._dtype), alpha=group["lr"])
                p.copy_(own)


def _moved_after_one_step(problem: Problem, batch: Any, optimizer: Any, cost: Any) -> TeleportReport:
    """A step that gives the optimiser its state, and one with a teleport."""
    mtl_core.step(problem, batch, optimizer, Equal())
    torch.manual_seed(0)
    (report,) = mtl_core.step(problem, batch, optimizer, cost).events
    assert isinstance(report, TeleportReport)
    assert report.accepted, report.reason
    return report


COSTS: dict[str, Callable[[], Any]] = {
    "COST": lambda: COST(Equal(), trigger=always, max_per_epoch=None, lr=3e-3, aim=None, max_steps=6),
    "Dense": lambda: COST(Equal(), adapter=Dense(), trigger=always, max_per_epoch=None, lr=3e-3, max_steps=6),
    "RandomTeleport": lambda: RandomTeleport(Equal(), length=1.0, trigger=always, max_per_epoch=None),
}


class TestCopiesOfTheWeights:
    @pytest.mark.parametrize("cost", COSTS)
    @pytest.mark.parametrize(
        ("dtype", "settings"),
        [
            (torch.bfloat16, {"dtype": torch.float32}),
            (torch.float32, {"dtype": torch.float32}),
            (torch.float32, {"dtype": torch.float64}),
            (torch.float32, {"dtype": torch.float32, "entry": "slow", "adam": False}),
        ],
        ids=["bfloat16", "float32", "double", "slow"],
    )
    def test_they_are_moved_along(self, dtype: torch.dtype, settings: Any, cost: str, conflicting: Make) -> None:
        """The report said accepted while .001 of the move was left."""
        problem, batch = conflicting(dtype)
        optimizer = Masters(problem.model.parameters(), lr=1e-5, **settings)
        start = [p.detach().clone() for p in problem.shared]
        report = _moved_after_one_step(problem, batch, optimizer, COSTS[cost]())
        assert report.kept == pytest.approx(1.0, abs=0.05)
        went = torch.cat([(p.detach() - q).double().flatten() for p, q in zip(problem.shared, start, strict=True)])
        assert float(went.norm()) == pytest.approx(report.length, rel=0.05)

    def test_a_copy_that_no_one_knows_of_shows_in_what_is_kept(self, conflicting: Make) -> None:
        problem, batch = conflicting(torch.float32)
        optimizer = Hidden(problem.model.parameters(), lr=1e-5, dtype=torch.float32)
        report = _moved_after_one_step(problem, batch, optimizer, COSTS["COST"]())
        assert report.kept is not None
        assert abs(report.kept) < 0.05
        assert report.as_dict()["kept"] == report.kept

    def test_memory_that_is_no_copy_stays(self, conflicting: Make) -> None:
        problem, batch = conflicting()
        adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        mtl_core.step(problem, batch, adam, Equal())
        memory = copy.deepcopy(adam.state_dict()["state"])
        gradients = collect_problem(problem, problem.losses(batch))
        report = COST(max_steps=4).teleport(problem, [batch], gradients, optimizer=adam)
        assert report.accepted
        assert report.kept is None
        for key, entries in adam.state_dict()["state"].items():
            assert all(torch.equal(entries[name], memory[key][name]) for name in entries)

    def test_a_parameter_of_zeros_has_no_copy_that_could_be_told(self) -> None:
        p = nn.Parameter(torch.zeros(2, 2))
        optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
        optimizer.state[p]["momentum_buffer"] = torch.zeros(2, 2)
        WayBack({"p": p}, optimizer).write({"p": torch.ones(2, 2)})
        assert not optimizer.state[p]["momentum_buffer"].any()


class TestWayBack:
    def test_a_copy_gets_what_the_parameter_itself_cannot_hold(self) -> None:
        """100.5 - 2^-8 is no number of bfloat16; rounded to one, it left the copy at 100.504."""
        p = nn.Parameter(torch.tensor([2.0**-8], dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([p], lr=0.1)
        optimizer.state[p]["master"] = torch.tensor([2.0**-8])
        back = WayBack({"p": p}, optimizer)
        back.write({"p": torch.tensor([100.5], dtype=torch.bfloat16)})
        assert optimizer.state[p]["master"].tolist() == [100.5]
        assert back.kept() == 1.0

    def test_by_hand(self) -> None:
        p = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([p], lr=0.1)
        optimizer.state[p]["master"] = torch.tensor([1.001, 2.0], dtype=torch.float32)
        optimizer.state[p]["exp_avg"] = torch.tensor([1.5, 2.0])
        back = WayBack({"p": p}, optimizer)
        assert back.kept() is None
        back.write({"p": torch.tensor([1.5, 1.0], dtype=torch.bfloat16)})
        # Δ = (0.5, -1): the copy gets it in its own precision, and the rest stays.
        assert optimizer.state[p]["master"].tolist() == pytest.approx([1.501, 1.0])
        assert optimizer.state[p]["exp_avg"].tolist() == [1.5, 2.0]
        assert back.kept() == 1.0
        with torch.no_grad():
            p.copy_(torch.tensor([1.5, 2.0]))  # of (0.5, -1) the part (0.5, 0) is left: 0.25 / 1.25
        assert back.kept() == pytest.approx(0.2)
        back.restore()
        assert p.tolist() == [1.0, 2.0]
        assert optimizer.state[p]["master"].tolist() == pytest.approx([1.001, 2.0])
        assert back.kept() is None
        back.restore()

    @pytest.mark.parametrize("size", [3, 4, 5, 9])
    def test_a_large_parameter_is_measured_in_part(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(way_back_module, "_ENTRIES", 4)
        p = nn.Parameter(torch.ones(size))
        back = WayBack({"p": p}, None)
        back.write({"p": 3.0 * torch.ones(size)})
        assert back.kept() == 1.0
        with torch.no_grad():
            p.fill_(1.5)
        assert back.kept() == pytest.approx(0.25)

    def test_an_error_while_it_writes(self) -> None:
        first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        back = WayBack({"a": first, "b": second}, None)
        with pytest.raises(RuntimeError):
            back.write({"a": torch.zeros(2), "b": torch.zeros(3)})
        back.restore()
        assert first.tolist() == second.tolist() == [1.0, 1.0]


@contextmanager
def _raising_in_second_evaluation(problem: Problem, optimizer: Any, cost: Any) -> Iterator[None]:
    fine, start = problem.losses, [p.detach().clone() for p in problem.shared]

    def losses(batch: Any, *, parameters: Any = None) -> Any:
        own = parameters is None and all(isinstance(p, nn.Parameter) for p in problem.shared)
        if own and any(not torch.equal(p, q) for p, q in zip(problem.shared, start, strict=True)):
            torch.rand(3)  # random numbers are drawn, and a buffer is written, before it goes wrong
            next(problem.model.buffers()).add_(1.0)
            raise RuntimeError("injected")
        return fine(batch, parameters=parameters)

    problem.losses = losses  # type: ignore[method-assign]
    yield


@contextmanager
def _raising_in_the_weights(problem: Problem, optimizer: Any, cost: Any) -> Iterator[None]:
    calls = 0

    class Second(Equal):
        def weights(self, gramian: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 2:  # the first is for the update that was due
                raise RuntimeError("injected")
            return super().weights(gramian)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    cost.method = Second()
    yield


@contextmanager
def _raising_in_the_optimizer(problem: Problem, optimizer: Any, cost: Any) -> Iterator[None]:
    def step(*_: Any, **__: Any) -> None:
        raise RuntimeError("injected")

    def pre(opt: Any, *_: Any) -> None:
        raise RuntimeError("injected")

    handle = optimizer.register_step_pre_hook(pre)
    yield
    handle.remove()


@contextmanager
def _raising_in_the_report(problem: Problem, optimizer: Any, cost: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("injected")

        patch.setattr(moving_module, "described", broken)
        yield


@contextmanager
def _raising_in_what_is_measured_after(problem: Problem, optimizer: Any, cost: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("injected")

        patch.setattr(teleportation, "with_after", broken)
        yield


@contextmanager
def _raising_in_the_search(problem: Problem, optimizer: Any, cost: Any) -> Iterator[None]:
    def broken(*_: Any) -> Any:
        torch.rand(3)
        raise RuntimeError("injected")

    cost._propose = broken
    yield


STAGES = {
    "search": _raising_in_the_search,
    "report": _raising_in_the_report,
    "second evaluation": _raising_in_second_evaluation,
    "measured after": _raising_in_what_is_measured_after,
    "weights": _raising_in_the_weights,
    "optimizer": _raising_in_the_optimizer,
}


def _optimizers(problem: Problem) -> dict[str, Callable[[], Any]]:
    parameters = list(problem.model.parameters())
    return {
        "adam": lambda: torch.optim.Adam(parameters, lr=1e-2),
        "masters": lambda: Masters(parameters, lr=1e-2, dtype=torch.float64),
    }


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "masters"])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_stage_leaves_everything(
    stage: str, cost: str, optimizer: str, parts: int, conflicting: Make
) -> None:
    problem, batch = conflicting()
    method, made = COSTS[cost](), _optimizers(problem)[optimizer]()
    mtl_core.step(problem, batch, made, Equal())
    before = copy.deepcopy((problem.model.state_dict(), made.state_dict(), method.own_state()))
    torch.manual_seed(3)
    random = torch.get_rng_state()
    given = batch if parts == 1 else MicroBatches([batch, batch])
    with (
        STAGES[stage](problem, made, method),
        pytest.raises(RuntimeError, match="injected"),
    ):
        mtl_core.step(problem, given, made, method)
    after = (problem.model.state_dict(), made.state_dict(), method.own_state())
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in before[0].items():
        assert torch.equal(after[0][name], value), name
    for key, entries in before[1]["state"].items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(after[1]["state"][key][name]), torch.as_tensor(value)), name
    assert after[2]["schedule"] == before[2]["schedule"]
    assert torch.equal(after[2]["generator"], before[2]["generator"])
    assert {k: v for k, v in after[2].items() if k in ("due", "made")} == {
        k: v for k, v in before[2].items() if k in ("due", "made")
    }


@pytest.mark.parametrize("stage", ["report", "second evaluation"])
def test_a_teleport_by_hand_that_raises(stage: str, conflicting: Make) -> None:
    problem, batch = conflicting()
    method = COST(Equal(), adapter=LoRA(rank=2), max_steps=4)
    gradients = collect_problem(problem, problem.losses(batch))
    torch.manual_seed(3)
    before, random = copy.deepcopy(problem.model.state_dict()), torch.get_rng_state()
    with STAGES[stage](problem, None, method), pytest.raises(RuntimeError, match="injected"):
        method.teleport(problem, [batch], gradients, lr=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
