"""Micro-batches in which no task has a loss: left out, and refused where no part has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import (
    MicroBatches,
    NoLossesError,
    NonFiniteGradientError,
    NonFiniteLossError,
    Problem,
    TaskSampling,
    UpdateEvery,
    accumulate,
    step,
)
from mtl_core.testing import TwoLayers

Part = tuple[Tensor, str]


class ByNorm:
    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


class ByLoss:
    needs = "losses"
    takes_present = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return (losses**2).sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        self.seen += [before, after()]


METHODS: dict[str, Callable[[], Any]] = {
    "gramian": ByNorm,
    "losses": ByLoss,
    "jacobian": lambda: lambda jacobian: jacobian.sum(0),
    "held": lambda: UpdateEvery(ByNorm(), steps=2),
}


def problem() -> Problem:
    torch.manual_seed(0)

    def losses(model: nn.Module, part: Part) -> dict[str, Tensor]:
        x, names = part
        outputs = model(x)[1]
        return {name: (outputs["abc".index(name)] - 1.0).square().mean() for name in names}

    return Problem(TwoLayers(3), losses, shared="trunk", tasks=("a", "b", "c"))


def rows(start: int, end: int) -> Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[start:end]


FULL: list[Part] = [(rows(0, 4), "abc"), (rows(4, 8), "ab")]
EMPTY: Part = (rows(2, 5), "")
PLACES: dict[str, list[Part]] = {
    "first": [EMPTY, *FULL],
    "between": [FULL[0], EMPTY, FULL[1]],
    "last": [*FULL, EMPTY],
    "several": [EMPTY, FULL[0], EMPTY, FULL[1], EMPTY],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_left_out(method: str, place: str) -> None:
    found = []
    for parts in (FULL, PLACES[place]):
        own, made = problem(), METHODS[method]()
        optimizer = torch.optim.SGD(own.model.parameters(), lr=0.1)
        for _ in range(2):
            report = step(own, MicroBatches(parts), optimizer, made)
        values = [*(p.detach().flatten() for p in own.model.parameters()), report.losses]
        values += made.seen if isinstance(made, ByLoss) else []
        found.append(torch.cat(values))
    assert torch.equal(found[0], found[1])


def test_gradients_by_themselves() -> None:
    own = problem()
    expected, found = accumulate(own, MicroBatches(FULL)), accumulate(own, MicroBatches(PLACES["several"]))
    assert torch.equal(found.matrix, expected.matrix)
    assert torch.equal(found.losses, expected.losses)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("method", [*METHODS, "sampling"])
def test_no_part_has_one(method: str, parts: int) -> None:
    """Said before anything moves, so that a loop may catch it and go on."""
    own = problem()
    made = TaskSampling(ByNorm(), n_tasks=2) if method == "sampling" else METHODS[method]()
    optimizer = torch.optim.Adam(own.model.parameters(), lr=0.1)
    step(own, MicroBatches(FULL), optimizer, made)
    before = [p.detach().clone() for p in own.model.parameters()]
    random = torch.get_rng_state()
    expected = rf"one of the {parts} micro-batches must have the loss of at least one of \('a', 'b', 'c'\), got none"
    with pytest.raises(NoLossesError, match=expected):
        step(own, MicroBatches([EMPTY] * parts), optimizer, made)
    assert all(torch.equal(p, q) for p, q in zip(own.model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    step(own, MicroBatches(FULL), optimizer, made)


@pytest.mark.parametrize("fault", ["loss", "gradient"])
@pytest.mark.parametrize("method", ["gramian", "losses"])
def test_what_is_broken_is_named_beside_it(method: str, fault: str) -> None:
    """The step's parts are evaluated again, task by task: there too it is left out."""
    own = problem()
    of_part = own._loss_fn

    def losses(model: nn.Module, part: Part) -> Any:
        found = of_part(model, part)
        for name in set(found) & {"b", "c"} if len(found) == 3 else ():
            found[name] = found[name] / 0.0 if fault == "loss" else found[name] + (0.0 * found[name]).sqrt()
        return found

    broken = Problem(own.model, losses, shared="trunk", tasks=own.tasks)
    optimizer = torch.optim.SGD(own.model.parameters(), lr=0.1)
    with pytest.raises((NonFiniteLossError, NonFiniteGradientError)) as refused:
        step(broken, MicroBatches(PLACES["between"]), optimizer, METHODS[method]())
    assert sorted(refused.value.tasks) == ["b", "c"]
