"""Features at which the graph cannot be cut are refused alike by methods that use them and by those that do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import available, make
from mtl_core import InvalidInputError, MicroBatches
from mtl_core.testing import TwoLayers

TASKS = ("a", "b", "c")
WRONG = {
    "a part of the way": (lambda model, z, low: low[:, :1].exp(), "another way for tasks"),
    "a shared parameter": (lambda model, z, low: model.trunk[2].weight, "another way for tasks"),
    "one from another": (lambda model, z, low: [z, z + low], "must not be computed from one another"),
    "beside one above a head": (lambda model, z, low: [z, model.heads[0](z)], ""),  # adds nothing, and is left out
}
WITHOUT_PARTS = {"gradnorm", "modo", "sdmgrad"}  # refuse micro-batches as such


def _setting(wrong: str) -> tuple[TwoLayers, mtl_core.Problem, Tensor]:
    torch.manual_seed(0)
    model = TwoLayers(3)

    def losses(model: TwoLayers, x: Tensor) -> Any:
        low = model.trunk[1](model.trunk[0](x))
        z = model.trunk[2](low)
        found = {name: head(z).square().mean() + 1 for name, head in zip(TASKS, model.heads, strict=True)}
        return found, WRONG[wrong][0](model, z, low)

    problem = mtl_core.Problem(model, losses, shared=model.trunk, tasks=TASKS)
    return model, problem, torch.randn(4, 3, dtype=torch.float64)


def _outcome(name: str, wrong: str, parts: int) -> str:
    """What a step says of such features; before and after it, all is the same unless nothing is said."""
    model, problem, x = _setting(wrong)
    batch: Any = x if parts == 1 else MicroBatches(x.chunk(parts))
    method: Any = make(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    if callable(getattr(method, "start_epoch", None)):
        method.start_epoch(0)
    said = ""
    for _ in range(2):  # the second look is as sharp as the first
        try:
            mtl_core.step(problem, batch, optimizer, method)
        except InvalidInputError as error:
            said = str(error)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()) == bool(said)
    return said


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("name", "parts"),
    [(name, parts) for name in available() for parts in (1, 2) if parts == 1 or name not in WITHOUT_PARTS],
)
def test_they_are_refused_alike(name: str, parts: int, wrong: str) -> None:
    expected = WRONG[wrong][1]
    said = _outcome(name, wrong, parts)
    assert said == _outcome("upgrad", wrong, 1)
    assert expected in said
    assert said.startswith("`features` must") == bool(expected)
