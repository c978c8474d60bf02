"""A teleport by hand: each argument is looked at where it is given, and what can never be moved at the first step."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import DuplicateModuleError, InvalidInputError, InvalidParameterError, MicroBatches, Problem, collect
from mtl_core.extension import collect_batch
from mtl_teleport import COST, Always, LoRA, RandomTeleport, WeakConflict

Make = Callable[..., tuple[Problem, Any]]
Given = dict[str, Any]


def _given(make: Make) -> Given:
    problem, batch = make()
    return {"problem": problem, "batches": [batch], "gradients": collect_batch(problem, batch), "lr": 1e-2}


def _others(problem: Problem, batch: Any) -> Any:
    """Gradients of one task only, and of the shared parameters in another order."""
    values = problem.losses(batch).values
    return {
        "one task": lambda: collect(values[:1], problem.shared),
        "another order": lambda: collect(values, problem.shared[::-1]),
        "some": lambda: collect(values, problem.shared[1:]),
    }


WRONG: dict[str, tuple[Callable[[Given], Given], type[Exception], str]] = {
    "a model": (lambda g: {"problem": g["problem"].model}, InvalidInputError, "`problem`.*got Net"),
    "no gradients": (lambda g: {"gradients": None}, InvalidInputError, "`gradients`.*got NoneType"),
    "a matrix": (lambda g: {"gradients": g["gradients"].matrix}, InvalidInputError, "`gradients`.*got Tensor"),
    **{
        f"gradients of {name}": (
            lambda g, name=name: {"gradients": _others(g["problem"], g["batches"][0])[name]()},
            InvalidInputError,
            "`gradients` must be of the problem's 2 tasks by its 6 shared",
        )
        for name in ("one task", "another order", "some")
    },
    "a tensor": (lambda g: {"batches": g["batches"][0][0]}, InvalidInputError, "`batches`.*got Tensor"),
    "a mapping": (lambda g: {"batches": {"x": 1}}, InvalidInputError, "`batches`.*got dict"),
    "a number": (lambda g: {"batches": 3}, InvalidInputError, "`batches`.*got int"),
    "none": (lambda g: {"batches": []}, InvalidInputError, "`batches`.*at least one.*got none"),
    "parts": (lambda g: {"batches": [MicroBatches(g["batches"])]}, InvalidInputError, "got MicroBatches among them"),
    "a model to step": (lambda g: {"optimizer": g["problem"].model}, InvalidInputError, "`optimizer`.*got Net"),
    "NaN": (lambda g: {"lr": float("nan")}, InvalidParameterError, "`lr`.*got nan"),
    "uphill": (lambda g: {"lr": -1e-2}, InvalidParameterError, "`lr`.*got -0.01"),
    "a word": (lambda g: {"lr": "fast"}, InvalidParameterError, "`lr`.*got 'fast'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_something_else_is_refused_by_name(case: str, conflicting: Make) -> None:
    change, kind, says = WRONG[case]
    given = _given(conflicting)
    given, model = {**given, **change(given)}, given["problem"].model
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cost = COST(adapter=LoRA(2), max_steps=2)
    counters = cost.own_state()["schedule"]
    with pytest.raises(kind, match=says):
        cost.teleport(**given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert cost.own_state()["schedule"] == counters


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_gradients_must_be_on(switch: Any, conflicting: Make) -> None:
    """Without them the search saw nothing to climb, and the report said that nothing was worth a move."""
    given = _given(conflicting)
    with (
        switch(),
        pytest.raises(InvalidInputError, match=rf"must be enabled for a teleport, got torch.{switch.__name__}"),
    ):
        COST(max_steps=2).teleport(**given)


@pytest.mark.parametrize("form", [tuple, lambda b: torch.utils.data.DataLoader(b, batch_size=None), iter])
def test_batches_in_any_collection(form: Any, conflicting: Make) -> None:
    given = _given(conflicting)
    given["batches"] = form(given["batches"])
    assert COST(adapter=LoRA(2), max_steps=2).teleport(**given).accepted


def _scripted() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))  # type: ignore[no-any-return]


def _doubled() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer)


def _empty() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (_scripted, InvalidInputError, "must not be scripted to be evaluated at other parameters"),
        (_doubled, DuplicateModuleError, "must register each submodule once"),
        (_empty, InvalidInputError, "must hold values to be teleported, got weight, bias on the meta device"),
    ],
)
@pytest.mark.parametrize("schedule", [{"start_after": 50}, {"start_after": 0}], ids=["closed", "open"])
@pytest.mark.parametrize("make", [COST, lambda **settings: RandomTeleport(length=0.1, **settings)])
def test_a_model_that_can_never_be_moved_is_refused_at_the_first_step(
    model: Any, kind: Any, says: str, schedule: Any, make: Any
) -> None:
    """And not after hours, when a teleport falls due."""
    net = model()
    problem = Problem(net, lambda m, x: m(x).square().mean(0), shared=net, tasks=("a", "b"))
    method = make(trigger=WeakConflict(), steps_per_epoch=10, **schedule)
    x = torch.ones(3, 2, device=next(net.parameters()).device)
    with pytest.raises(kind, match=says):
        mtl_core.step(problem, x, torch.optim.SGD(net.parameters(), lr=0.1), method)
    assert method.schedule.steps == 0


class WithoutRate(torch.optim.SGD):
    """An optimiser of one's own whose groups say no learning rate."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            del group["lr"]


def _heads(problem: Problem, kind: Any, **settings: Any) -> Any:
    return kind([p for p in problem.heads if p.requires_grad], **settings)


WITHOUT = {
    "heads only": (
        lambda p: _heads(p, torch.optim.Adam),
        "must hold shared.*got Adam with 4 parameters and none of tr",
    ),
    "no rate": (lambda p: WithoutRate(p.model.parameters()), "must have an entry 'lr'.*got WithoutRate with dampening"),
}


@pytest.mark.parametrize("case", WITHOUT)
@pytest.mark.parametrize("settings", [{}, {"sharpness": "look-ahead"}, {"sharpness": "look-ahead", "lr": 0.1}], ids=str)
@pytest.mark.parametrize("start_after", [0, 50])
def test_an_optimiser_without_a_rate_for_the_search_is_refused_at_the_first_step(
    case: str, settings: Any, start_after: int, conflicting: Make
) -> None:
    """It was when a teleport fell due, and said that ``lr`` must be given where no optimiser says it."""
    (make, says), (problem, batch) = WITHOUT[case], conflicting()
    before = copy.deepcopy(problem.model.state_dict())
    method = COST(start_after=start_after, steps_per_epoch=10, trigger=Always(), **settings)
    with pytest.raises(InvalidInputError, match=says) as told:
        mtl_core.step(problem, batch, make(problem), method)
    # Advice that would not do is not given: a look ahead needs the optimiser's own rate.
    assert ("COST(..., lr=...)" in str(told.value)) == ("sharpness" not in settings)
    assert method.schedule.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())


def test_a_rate_of_the_search_or_of_any_shared_parameter_will_do(conflicting: Make) -> None:
    for settings, skipped in (({"lr": 1e-2}, 6), ({}, 1)):
        problem, batch = conflicting()
        optimizer = torch.optim.SGD([*problem.shared[skipped:], *problem.heads], lr=1e-2)
        method = COST(adapter=LoRA(2), max_steps=2, steps_per_epoch=10, trigger=Always(), **settings)
        events = mtl_core.step(problem, batch, optimizer, method).events
        assert [event.kind for event in events] == ["note", "teleport"]


class Locked:
    """Cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, jacobian: Tensor) -> Tensor:
        return jacobian.sum(0)


class Whole(Locked):
    """Cannot be copied either, and makes its own step."""

    def step(self, problem: Problem, batch: Any, optimizer: Any, *, options: Any = None) -> Any:
        return mtl_core.step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))


def test_a_method_that_cannot_be_copied_is_refused_where_it_is_given() -> None:
    with pytest.raises(InvalidInputError, match=r"copy.deepcopy can copy.*got Locked: cannot pickle.*__deepcopy__"):
        COST(Locked())


def test_a_method_with_a_step_of_its_own_is_not_copied(conflicting: Make) -> None:
    """Nor are a loader and its data set that a wrapped ``COST`` holds."""

    class Loader:
        def __init__(self, batch: Any) -> None:
            self.batch, self.lock = batch, threading.Lock()

        def __iter__(self) -> Any:
            yield self.batch

    problem, batch = conflicting()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    settings: Given = {"trigger": Always(), "max_per_epoch": None, "max_steps": 2, "probe_batches": Loader(batch)}
    for method in (Whole(), COST(**settings)):
        report = mtl_core.step(problem, batch, optimizer, COST(method, **settings))
        assert next(event.kind for event in report.events) == "teleport"


@pytest.mark.parametrize("answer", [lambda g: g.diagonal() > 0, lambda g: torch.zeros(0, 2)])
def test_a_trigger_says_yes_or_no(answer: Any, conflicting: Make) -> None:
    problem, batch = conflicting()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    with pytest.raises(InvalidInputError, match=r"`trigger` must say yes or no, got a tensor of shape \("):
        mtl_core.step(problem, batch, optimizer, COST(trigger=answer, max_per_epoch=None))


def test_a_trigger_may_write_into_what_it_is_shown(conflicting: Make) -> None:
    def writes(gramian: Tensor) -> bool:
        gramian.zero_()
        return False

    problem, batch = conflicting()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    report = mtl_core.step(problem, batch, optimizer, COST(trigger=writes, max_per_epoch=None))
    assert report.gramian is not None
    assert bool((report.gramian.diagonal() > 0).all())
