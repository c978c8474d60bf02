"""What a wrapper hands on: everything that the wrapped method offers, whether that is a module or not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, TaskSampling, UpdateEvery, step
from mtl_core.extension import Draws, HasMemory, Wrapper, offers
from mtl_core.testing import small_problem


@dataclass(frozen=True)
class Told:
    kind: str = "told"

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Structural:
    """A weighting with everything that a method may offer, and no module. Its weights are 1, 2, 3, ... by call."""

    has_memory = True

    def __init__(self) -> None:
        self.calls = 0
        self.epochs: list[int] = []
        self.events: list[Told] = []
        self.learnt: list[tuple[Tensor, Tensor]] = []

    def weights(self, gramian: Tensor) -> Tensor:
        self.calls += 1
        self.events.append(Told())
        return torch.full((len(gramian),), float(self.calls), dtype=torch.float64)

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def pop_events(self) -> tuple[Told, ...]:
        found, self.events = tuple(self.events), []
        return found

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        self.learnt.append((before, after()))

    def reset(self) -> None:
        self.calls = 0

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = int(state["calls"])


class Module(nn.Module):
    """The same memory in a module's buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def weights(self, gramian: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((len(gramian),), float(self.calls), dtype=torch.float64)


class Random:
    """A weighting that draws its weights and remembers nothing else."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.rand(len(gramian), generator=self.generator, dtype=torch.float64)


def plain(jacobian: Tensor) -> Tensor:
    return jacobian.sum(0)


class Bare(Wrapper):
    """A wrapper with nothing of its own but a step."""

    def step(self, problem: Any, batch: Any, optimizer: Any, *, options: Any = None) -> Any:
        return step(problem, batch, optimizer, self.method)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "UpdateEvery": lambda method: UpdateEvery(method, steps=2),
    "TaskSampling": lambda method: TaskSampling(method, n_tasks=3),
    "Bare": Bare,
}
both = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
CALLS_OF_FOUR = {"UpdateEvery": 2, "TaskSampling": 4, "Bare": 4}


def make() -> tuple[Any, Tensor, torch.optim.Optimizer]:
    problem, batch = small_problem(3)
    return problem, batch, torch.optim.SGD(problem.model.parameters(), lr=0.01)


@pytest.mark.parametrize("kind", [Structural, Module])
@pytest.mark.parametrize("name", WRAPPERS)
def test_state_goes_on_in_a_fresh_object(name: str, kind: type) -> None:
    problem, batch, optimizer = make()
    method, fresh = WRAPPERS[name](kind()), WRAPPERS[name](kind())
    for _ in range(4):
        step(problem, batch, optimizer, method)
    assert int(method.method.calls) == CALLS_OF_FOUR[name]
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    assert int(fresh.method.calls) == CALLS_OF_FOUR[name]
    report = step(problem, batch, optimizer, fresh)
    torch.testing.assert_close(report.weights, torch.full((3,), CALLS_OF_FOUR[name] + 1.0, dtype=torch.float64))


@both
def test_random_numbers_go_on_in_a_fresh_object(wrap: Callable[[Any], Any]) -> None:
    problem, batch, optimizer = make()
    method, fresh = wrap(Random()), wrap(Random())
    for _ in range(2):
        step(problem, batch, optimizer, method)
    assert not torch.equal(method.method.generator.get_state(), fresh.method.generator.get_state())
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(method.method.generator.get_state(), fresh.method.generator.get_state())
    first = step(problem, batch, optimizer, method).weights
    assert torch.equal(first, step(problem, batch, optimizer, fresh).weights)


@both
def test_epochs_events_reset_and_what_was_learnt(wrap: Callable[[Any], Any]) -> None:
    problem, batch, optimizer = make()
    method = Structural()
    wrapped = wrap(method)
    wrapped.start_epoch(0)
    wrapped.start_epoch(5)
    assert method.epochs == [0, 5]
    method.events = [Told(), Told("twice")]
    assert [event.kind for event in wrapped.pop_events()] == ["told", "twice"]
    assert wrapped.pop_events() == ()
    before, after = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    wrapped.after_step(before, lambda: after)
    assert method.learnt == [(before, after)]
    step(problem, batch, optimizer, wrapped)
    step(problem, batch, optimizer, wrapped)
    wrapped.reset()
    assert method.calls == 0
    report = step(problem, batch, optimizer, wrapped)
    torch.testing.assert_close(report.weights, torch.ones(3, dtype=torch.float64))


@both
def test_a_step_tells_the_events_and_shows_the_update_once(wrap: Callable[[Any], Any]) -> None:
    problem, batch, optimizer = make()
    method = Structural()
    before = problem.losses(batch).values.detach()
    report = step(problem, batch, optimizer, wrap(method))
    assert [event.kind for event in report.events] == ["told"]
    ((shown, after),) = method.learnt
    torch.testing.assert_close(shown, before)
    torch.testing.assert_close(after, problem.losses(batch).values.detach())


@pytest.mark.parametrize("name", ["TaskSampling", "Bare"])
def test_a_function_offers_nothing_and_is_wrapped_all_the_same(name: str) -> None:
    problem, batch, optimizer = make()
    wrapped, fresh = WRAPPERS[name](plain), WRAPPERS[name](plain)
    wrapped.start_epoch(1)
    wrapped.reset()
    wrapped.after_step(torch.ones(3), lambda: torch.ones(3))
    assert wrapped.pop_events() == ()
    assert not wrapped.has_memory
    step(problem, batch, optimizer, wrapped)
    fresh.load_state_dict(copy.deepcopy(wrapped.state_dict()))


@pytest.mark.parametrize("name", ["UpdateEvery", "Bare"])
def test_the_generator_is_that_of_the_wrapped_method(name: str) -> None:
    method = Random()
    assert WRAPPERS[name](method).generator is method.generator
    assert not offers(WRAPPERS[name](Structural()), Draws)  # None does not count


def test_the_generator_of_a_sampler_is_its_own() -> None:
    own = torch.Generator().manual_seed(1)
    assert TaskSampling(Random(), n_tasks=1, generator=own).generator is own


@both
def test_memory_is_that_of_the_wrapped_method(wrap: Callable[[Any], Any]) -> None:
    assert offers(wrap(Structural()), HasMemory)
    assert wrap(Structural()).has_memory
    assert not wrap(Random()).has_memory


class TestBadInput:
    @both
    def test_another_form(self, wrap: Callable[[Any], Any]) -> None:
        with pytest.raises(InvalidInputError, match=r"`state_dict` must be what state_dict\(\) of a"):
            wrap(Structural()).load_state_dict({})
        with pytest.raises(InvalidInputError, match="`state_dict` must be what"):
            wrap(Structural()).load_state_dict({"_extra_state": 3})
        with pytest.raises(InvalidInputError, match="`state_dict` must be what"):
            wrap(Structural()).load_state_dict({"_extra_state": {"calls": 3}})

    @both
    def test_a_state_that_the_wrapped_method_cannot_take(self, wrap: Callable[[Any], Any]) -> None:
        with pytest.raises(InvalidInputError, match=r"`state_dict` must be what .* around a Random .* got one with"):
            wrap(Random()).load_state_dict(wrap(Structural()).state_dict())
        with pytest.raises(InvalidInputError, match=r"`state_dict` must be what .* around a Structural"):
            wrap(Structural()).load_state_dict(wrap(Module()).state_dict())
        with pytest.raises(InvalidInputError):
            wrap(Module()).load_state_dict(wrap(Structural()).state_dict())
