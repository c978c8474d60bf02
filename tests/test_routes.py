"""Which methods go which ways: every combination works, or is refused in words before anything moves; none is silent.

Methods by kind, alone and in every wrapper, on every route that a step can take. The tables say what is supported; what
they do not name is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import CRMOGM, Bilevel, ThreeBatches, available, log_transform, make
from mtl_core import InvalidInputError, Method, MicroBatches, Problem, TaskSampling, UpdateEvery, Weighting, step
from mtl_core.extension import CountsEpochs, HasMemory, TakesSeveralBatches, is_loss_weighting, offers
from mtl_teleport import COST, RandomTeleport, Trigger

TASKS = ("a", "b", "c")


class Always(Trigger):
    """A teleport in every step."""

    def __call__(self, gramian: Tensor) -> bool:
        return True


def kind_of(method: Any) -> str:
    """What a method works on, by what it offers."""
    if isinstance(method, Bilevel):
        return "bilevel"
    if offers(method, TakesSeveralBatches):
        return "three batches"
    if is_loss_weighting(method):
        return "losses"
    if offers(method, Method):
        return "gramian step" if offers(method, Weighting) else "jacobian step"
    return "gramian" if offers(method, Weighting) else "jacobian"


EVERY = {"losses", "gramian", "gramian step", "jacobian", "jacobian step", "bilevel", "three batches"}
WITHOUT_JACOBIAN = {"losses", "gramian", "gramian step", "bilevel"}

ROUTES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "plain": ({}, EVERY),
    "chunks": ({"chunk_size": 2}, EVERY),
    "gramian only": ({"keep": "gramian"}, WITHOUT_JACOBIAN),
    "features": ({"keep": "features"}, WITHOUT_JACOBIAN),
    "by layer": ({"per": "layer"}, {"losses", "gramian", "gramian step", "jacobian", "jacobian step"}),
    "weighted heads": ({"heads": "weighted"}, EVERY - {"jacobian", "jacobian step"}),
    "micro-batches": ({}, EVERY - {"gramian step", "three batches"}),
    "absent task": ({}, EVERY),
    "scaler": ({}, EVERY),
}
"""Options, and the kinds of method that take the route alone."""

WRAPPERS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "alone": (lambda method: method, EVERY),
    "every": (lambda method: UpdateEvery(method, steps=2), {"gramian", "gramian step"}),
    "sampling": (lambda method: TaskSampling(method, n_tasks=2), {"losses", "gramian", "jacobian"}),
    "log": (log_transform, EVERY),
    "crmogm": (CRMOGM, {"gramian", "gramian step"}),
    "cost": (lambda method: COST(method, trigger=Always(), max_per_epoch=None, max_steps=2), EVERY),
    "random": (lambda method: RandomTeleport(method, length=0.01, trigger=Always(), max_per_epoch=None), EVERY),
}
"""How to wrap, and the kinds that can be."""

EXCEPTIONS: dict[tuple[str, str, str], bool] = {
    ("excessmtl", "*", "weighted heads"): True,  # it weighs by the Jacobian
    ("gradnorm", "crmogm", "micro-batches"): True,  # as a weighting, without its own step
    **{(name, "*", "absent task"): False for name in ("cosmos", "pbi")},  # they cannot do without one
    **{(name, "sampling", "*"): False for name in ("cosmos", "pbi")},
}
"""(method, wrapper, route) whose answer is another than that of its kind."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in TASKS)


def losses(model: Any, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    x, names = batch if isinstance(batch, tuple) else (batch, TASKS)
    z = model.trunk(x)
    return {n: (model.heads[TASKS.index(n)](z) - TASKS.index(n)).square().mean() + 1.5 for n in names}, z


def expected(name: str, kind: str, wrapper: str, route: str, method: Any) -> bool:
    for key in ((name, wrapper, route), (name, "*", route), (name, wrapper, "*")):
        if key in EXCEPTIONS:
            return EXCEPTIONS[key] and kind in WRAPPERS[wrapper][1]
    supported = kind in ROUTES[route][1] and kind in WRAPPERS[wrapper][1]
    remembers = offers(method, HasMemory) and method.has_memory
    return supported and not (route == "by layer" and ((remembers and kind != "gramian step") or wrapper == "crmogm"))


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("route", ROUTES)
def test_it_works_or_is_refused_before_anything_moves(name: str, wrapper: str, route: str) -> None:
    torch.manual_seed(0)
    model = Net().double()
    problem = Problem(model, losses, shared=model.trunk, tasks=TASKS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(9, 4, dtype=torch.float64)
    batch: Any = {"micro-batches": MicroBatches(x.chunk(3)), "absent task": (x, ("a", "c"))}.get(route, x)
    options = dict(ROUTES[route][0])
    if route == "scaler":
        options["scaler"] = torch.amp.GradScaler("cpu", init_scale=8.0)
    bare = make(name)
    kind = kind_of(bare)
    before = [p.detach().clone() for p in model.parameters()]
    works, said = True, ""
    try:
        method = WRAPPERS[wrapper][0](bare)
        if offers(method, CountsEpochs):
            method.start_epoch(0)
        for _ in range(2):
            report = step(problem, batch, optimizer, method, **options)
            assert report.tasks == TASKS
            assert wrapper == "sampling" or bool(torch.isfinite(report.losses[[0, 2]]).all())
    except InvalidInputError as error:
        works, said = False, str(error)
    if not works:
        assert ", got " in said, said
        assert len(said) > 60, said
        assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    if works:
        assert not all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert works == expected(name, kind, wrapper, route, bare), f"{kind} {name}, {wrapper}, {route}: {works}"


@pytest.mark.parametrize("name", ["sdmgrad", "modo"])
@pytest.mark.parametrize("wrapper", ["alone", "log", "cost", "random"])
def test_three_batches(name: str, wrapper: str) -> None:
    torch.manual_seed(0)
    model = Net().double()
    problem = Problem(model, losses, shared=model.trunk, tasks=TASKS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(9, 4, dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    method = WRAPPERS[wrapper][0](make(name))
    report = step(problem, ThreeBatches(*x.chunk(3)), optimizer, method)
    assert bool(torch.isfinite(report.losses).all())
    assert not all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    if wrapper in ("cost", "random"):
        assert [event.kind for event in report.events] == ["teleport"]
