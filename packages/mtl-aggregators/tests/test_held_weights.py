"""Held weights are those of the tasks that were there: a task that comes in gets a weight of its own at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import IMGrad, NashMTL, available, make
from mtl_core import InvalidInputError, MicroBatches, Problem, TaskSampling, UpdateEvery, step

Present = tuple[int, ...]


def made() -> tuple[Any, Problem, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2)),
            **{n: nn.Linear(6, 1) for n in "abc"},
        }
    ).double()

    def losses(model: Any, batch: tuple[Tensor, Present]) -> dict[str, Tensor]:
        x, present = batch
        z = model["trunk"](x)
        return {name: (model[name](z) - k).square().mean() + 1.5 for k, name in enumerate("abc") if k in present}

    problem = Problem(model, losses, shared="trunk", tasks=tuple("abc"))
    return model, problem, torch.optim.SGD(model.parameters(), lr=0.05)


def train(method: Any, turns: list[Present], *, in_parts: bool = False) -> tuple[list[Any], list[Tensor]]:
    model, problem, optimizer = made()
    drawn = torch.Generator().manual_seed(1)
    reports = []
    for present in turns:
        x = torch.randn(8, 4, dtype=torch.float64, generator=drawn)
        batch: Any = MicroBatches([(part, present) for part in x.chunk(2)]) if in_parts else (x, present)
        reports.append(step(problem, batch, optimizer, method))
    return reports, [value.detach().clone() for value in model.state_dict().values()]


HELD = {
    "update every": lambda name: UpdateEvery(make(name), steps=4),
    "nash": lambda name: NashMTL(update_weights_every=4),
    "imgrad": lambda name: IMGrad(update_every=4),
}


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("how", HELD)
def test_a_task_that_comes_in_moves_the_trunk_at_once(how: str, in_parts: bool) -> None:
    method = HELD[how]("mgda")
    reports, _ = train(method, [(0, 1), (0,), (2,), (0, 1, 2)], in_parts=in_parts)
    assert reports[2].weights[2] > 0.0
    assert reports[1].weights[0] == reports[0].weights[0]  # held, for a part of the tasks
    assert all(reports[3].weights > 0.0)


@pytest.mark.parametrize("how", HELD)
def test_with_every_task_there_the_turns_are_as_they_were(how: str) -> None:
    reports, _ = train(HELD[how]("mgda"), [(0, 1, 2)] * 6)
    weights = [report.weights.tolist() for report in reports]
    assert weights[0] == weights[1] == weights[2] == weights[3] != weights[4] == weights[5]


def test_the_turn_that_was_begun_in_vain_leaves_no_trace() -> None:
    # Buffers, dropout and parameters are those of a run whose turn it was.
    expected = train(UpdateEvery(make("mgda"), steps=1), [(0, 1), (1, 2)])[1]
    found = train(UpdateEvery(make("mgda"), steps=5), [(0, 1), (1, 2)])[1]
    for mine, wanted in zip(found, expected, strict=True):
        assert torch.equal(mine, wanted)


def test_turns_are_counted_from_there() -> None:
    method = UpdateEvery(make("mgda"), steps=3)
    reports, _ = train(method, [(0, 1), (1,), (1, 2), (1, 2), (2,), (1, 2)])
    weights = [report.weights.tolist() for report in reports]
    assert weights[2] == weights[3] != weights[5]
    assert weights[4][2] == weights[3][2]
    other = UpdateEvery(make("mgda"), steps=3)
    other.load_state_dict(method.state_dict())
    assert other.own_state()["known"].tolist() == [False, True, True]


@pytest.mark.parametrize("name", available())
def test_sampled_tasks_under_held_weights(name: str) -> None:
    try:
        method = UpdateEvery(TaskSampling(make(name), n_tasks=1), steps=50)  # type: ignore[arg-type]
    except InvalidInputError:
        method = TaskSampling(NashMTL(update_weights_every=50), n_tasks=1)  # type: ignore[assignment]
    before = made()[0]["trunk"][0].weight.detach().clone()
    model, problem, optimizer = made()
    for _ in range(6):
        step(
            problem, (torch.ones(4, 4, dtype=torch.float64) * torch.arange(4.0)[:, None], (0, 1, 2)), optimizer, method
        )
        now = model["trunk"][0].weight.detach().clone()
        assert not torch.equal(now, before)
        before = now
