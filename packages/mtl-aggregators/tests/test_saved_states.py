"""A saved state belongs to its method and is taken whole or not at all; nothing that is handed out is memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mtl_aggregators import available, log_transform, make
from mtl_core import InvalidInputError, TaskSampling, UpdateEvery, step
from mtl_core.extension import CountsEpochs
from mtl_core.testing import small_problem

WITH_MEMORY = sorted(name for name in available() if make(name).state_dict())


def trained(method: Any, steps: int = 3) -> Any:
    problem, batch = small_problem(3)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    for number in range(steps):
        if isinstance(method, CountsEpochs):
            method.start_epoch(number)
        step(problem, batch, optimizer, method)
    return method


def plain(state: Any) -> Any:
    """Tensors as lists, so that states compare."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_no_method_takes_the_state_of_another(name: str) -> None:
    method = trained(make(name))
    before = plain(method.state_dict())
    for other in WITH_MEMORY:
        if type(make(other)) is type(method):
            continue
        state = trained(make(other)).state_dict()
        with pytest.raises(InvalidInputError, match=rf"`state_dict` must be what .* of a {type(method).__name__}"):
            method.load_state_dict(state)
    assert plain(method.state_dict()) == before


def test_the_methods_with_memory_are_found() -> None:
    assert {"famo", "moco", "nashmtl", "gradnorm", "dwa", "uw", "pcgrad"} <= set(WITH_MEMORY)


@pytest.mark.parametrize("wrap", [lambda m: m, log_transform, lambda m: TaskSampling(m, n_tasks=2)])
@pytest.mark.parametrize("name", ["uw", "moco", "famo", "nashmtl"])
def test_a_state_in_another_form_is_refused_whole(name: str, wrap: Any) -> None:
    try:
        method = wrap(make(name))
    except InvalidInputError:
        pytest.skip("such a method is not wrapped so")
    state = method.state_dict()
    before = plain(state)
    key = next(iter(state))
    broken: list[Any] = [None, {}, [1], {**state, "more": 1}, {**state, key: None}, {**state, key: {}}]
    inner = {name: value for name, value in state[key].items() if name != "of"}
    broken += [{**state, key: inner}, {**state, key: {**state[key], "of": "Other"}}]
    for entry in inner:
        broken.append({**state, key: {k: v for k, v in state[key].items() if k != entry}})
    for wrong in broken:
        with pytest.raises(InvalidInputError, match="`state_dict` must be what"):
            method.load_state_dict(wrong)
        assert plain(method.state_dict()) == before


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_state_goes_through_a_file_and_goes_on_alike(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    method = trained(make(name))
    torch.save(method.state_dict(), tmp_path / "state.pt")
    other = make(name)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(1)
    trained(method, 2)
    torch.manual_seed(1)
    trained(other, 2)
    assert plain(other.state_dict()) == plain(method.state_dict())


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_state_that_was_loaded_stays_the_loaders(name: str) -> None:
    method, state = make(name), trained(make(name)).state_dict()
    method.load_state_dict(state)
    before = plain(method.state_dict())
    scribbled(dict(state))
    assert plain(method.state_dict()) == before


def scribbled(value: Any) -> None:
    """Write to every tensor within."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        value.mul_(3.0)
    elif isinstance(value, dict):
        for each in value.values():
            scribbled(each)
    elif isinstance(value, list | tuple):
        for each in value:
            scribbled(each)


WRAPPED = {
    "alone": lambda name: make(name),
    "update every": lambda name: UpdateEvery(make(name), steps=2),
    "log": lambda name: log_transform(make(name)),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("name", available())
def test_what_a_step_hands_out_is_no_memory(name: str, wrapper: str) -> None:
    found = []
    for scribbles in (False, True):
        torch.manual_seed(0)
        problem, batch = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
        try:
            method = WRAPPED[wrapper](name)
            for number in range(5):
                if isinstance(method, CountsEpochs):
                    method.start_epoch(number)
                report = step(problem, batch, optimizer, method)
                if scribbles:
                    scribbled([report.losses, report.weights, report.gramian])
        except InvalidInputError:
            pytest.skip("no such method")
        found.append(copy.deepcopy([p.detach() for p in problem.model.parameters()]))
    for mine, wanted in zip(found[1], found[0], strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("name", ["moco", "dbmtl", "excessmtl"])
@pytest.mark.parametrize(("before", "after"), [(4, 6), (1, 3), (3, 1)])
def test_memory_of_entries_wants_the_same_entries(name: str, before: int, after: int) -> None:
    options = {"log_losses": False} if name == "dbmtl" else {}
    method = make(name, **options)
    torch.manual_seed(0)
    method(torch.randn(2, before, dtype=torch.float64))
    state = plain(method.state_dict())
    with pytest.raises(InvalidInputError, match=rf"of {before} entries so far, got {after}\. Call reset\(\)"):
        method(torch.randn(2, after, dtype=torch.float64))
    assert plain(method.state_dict()) == state
    method.reset()
    assert method(torch.randn(2, after, dtype=torch.float64)).shape == (after,)
