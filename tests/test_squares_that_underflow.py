"""Gradients in float64 that are too small to be squared are refused by task, or make no difference to the method.

Nothing may take such a task for one without a gradient: its inner products would be zero, or off by some percent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import CRMOGM, IMGrad, MoCo, NashMTL, available, log_transform, make
from mtl_core import (
    InvalidJacobianError,
    MicroBatches,
    Problem,
    StepReport,
    UpdateEvery,
    cosines,
    dominated_conflict,
    imbalance_ratio,
    step,
)
from mtl_core.extension import CountsEpochs, offers
from mtl_teleport import COST, Dense, RandomTeleport

T = TypeVar("T")
TASKS = ("a", "b", "c")
START = torch.tensor([0.3, -0.2, 0.5, 0.4], dtype=torch.float64)
SLOPES = torch.tensor(
    [[1.0, 0.0, 0.5, 0.0], [-0.5, 1.0, 0.0, 0.2], [0.3, -0.4, 1.0, 0.0]],
    dtype=torch.float64,
)


class Trunk(nn.Module):
    """Four shared numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(START.clone())


def problem(scales: tuple[float, ...]) -> Problem:
    """Losses of about 1 whose gradients are rows of ``SLOPES`` times the scales."""

    def losses(model: Trunk, batch: Tensor) -> dict[str, Tensor]:
        moved = (model.w - START) * batch.mean()
        return {
            task: 1.0 + 0.5 * scale * (slope @ moved + slope @ (model.w - START))
            for task, scale, slope in zip(TASKS, scales, SLOPES, strict=True)
        }

    model = Trunk()
    return Problem(model, losses, shared=model, tasks=TASKS)


METHODS: dict[str, Callable[[], Any]] = {
    **{name: partial(make, name) for name in available() if name != "gradnorm"},
    "moco libmtl": lambda: MoCo(variant="libmtl"),
    "held nashmtl": lambda: NashMTL(update_weights_every=3),
    "held imgrad": lambda: IMGrad(update_every=3),
    "crmogm imtl": lambda: CRMOGM(make("imtl")),
    "log nashmtl": lambda: log_transform(make("nashmtl")),
    "every upgrad": lambda: UpdateEvery(make("upgrad"), steps=2),
    "cost mgda": lambda: COST(make("mgda"), adapter=Dense()),
    "random imtl": lambda: RandomTeleport(make("imtl"), length=0.05),
}
"""GradNorm is left out as it looks at one layer, which here is all there is: its own test is below."""
ROUTES: dict[str, dict[str, Any]] = {
    "one batch": {},
    "gramian": {"keep": "gramian"},
    "chunks": {"chunk_size": 2},
    "layer": {"per": "layer"},
    "micro-batches": {},
}


def stepped(name: str, route: str, scales: tuple[float, ...]) -> tuple[Tensor, StepReport] | None:
    """Update and report of one step; None where the method is not for this route whatever the scale."""
    method, own = METHODS[name](), problem(scales)
    if offers(method, CountsEpochs):
        method.start_epoch(0)
    batch: Any = torch.ones(2, 1, dtype=torch.float64)
    if route == "micro-batches":
        batch = MicroBatches([batch, batch])
    optimizer = torch.optim.SGD(own.model.parameters(), lr=0.0)
    torch.manual_seed(0)
    try:
        report = step(own, batch, optimizer, method, **ROUTES[route])
    except InvalidJacobianError:
        w = own.model.get_parameter("w")
        assert w.grad is None
        assert torch.equal(w.detach(), START)
        raise
    except Exception:
        if all(scale == 1.0 for scale in scales):
            return None
        raise
    found = own.model.get_parameter("w").grad
    assert found is not None
    return found.clone(), report


def tried(act: Callable[[], T]) -> tuple[T | None, str]:
    """What came of it, or how it was refused."""
    try:
        return act(), ""
    except InvalidJacobianError as error:
        return None, str(error)


@pytest.mark.parametrize("tiny", [1e-200, 1e-170, 3e-162, 1e-152, 1e-148])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", METHODS)
def test_one_task_beside_others(name: str, route: str, tiny: float) -> None:
    if stepped(name, route, (1.0, 1.0, 1.0)) is None:
        pytest.skip("not for this route")
    like = stepped(name, route, (1.0, 1e-100, 1.0))
    assert like is not None
    found, refused = tried(lambda: stepped(name, route, (1.0, tiny, 1.0)))
    if refused:
        assert [task for task in TASKS if f"'{task}'" in refused] == ["b"]
        assert f"e{f'{tiny:.0e}'.partition('e')[2]} " in refused  # the norm, or the largest entry
        return
    # What is no matter of squares does not see where they end.
    assert found is not None
    torch.testing.assert_close(found[0], like[0], rtol=1e-9, atol=1e-90)
    if like[1].weights is not None and found[1].weights is not None:
        # Those of a method that makes up for lengths grow as the gradient shrinks.
        scales = found[1].weights.new_tensor([1.0, tiny / 1e-100, 1.0])
        is_same = torch.isclose(found[1].weights, like[1].weights, rtol=1e-9, atol=1e-12)
        is_same |= torch.isclose(found[1].weights * scales, like[1].weights, rtol=1e-9, atol=1e-12)
        assert bool(is_same.all())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", METHODS)
def test_all_tasks(name: str, route: str) -> None:
    if stepped(name, route, (1.0, 1.0, 1.0)) is None:
        pytest.skip("not for this route")
    like = stepped(name, route, (1e-100,) * 3)
    assert like is not None
    found, refused = tried(lambda: stepped(name, route, (1e-170,) * 3))
    if refused:
        assert all(f"'{task}'" in refused for task in TASKS)
        return
    assert found is not None
    torch.testing.assert_close(found[0] * 1e70, like[0], rtol=1e-9, atol=1e-112)


def test_gradients_of_zeros_are_no_matter_of_squares() -> None:
    for name in METHODS:
        for route in ROUTES:
            if stepped(name, route, (1.0, 1.0, 1.0)) is not None:
                assert stepped(name, route, (1.0, 0.0, 1.0)) is not None


def test_nor_are_tasks_without_data() -> None:
    for keep in ("jacobian", "gramian"):
        own = problem((1.0, 1.0, 1.0))
        whole = own.losses

        def losses(model: Any, batch: Tensor) -> dict[str, Tensor]:
            return {"a": 1.0 + model.w[0], "c": 2.0 - model.w[1]}

        part = Problem(own.model, losses, shared=own.model, tasks=TASKS)
        report = step(part, torch.ones(1), torch.optim.SGD(own.model.parameters(), lr=0.1), make("mgda"), keep=keep)
        assert report.weights is not None
        assert report.weights.tolist() == pytest.approx([0.5, 0.0, 0.5])
        assert whole is not None


def test_gradnorm() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 3).double(), nn.Linear(3, 2).double()

    def losses(model: Layers, batch: Tensor) -> dict[str, Tensor]:
        y = model.last(torch.tanh(model.first(batch))).square().mean(0)
        return {"a": 1.0 + y[0], "b": 1.0 + 1e-170 * y[1]}

    model = Layers()
    own = Problem(model, losses, shared=model, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InvalidJacobianError, match="in 'b', whose squares"):
        step(own, torch.ones(4, 2, dtype=torch.float64), optimizer, make("gradnorm"))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


CALLED = {
    name: factory
    for name, factory in METHODS.items()
    if getattr(factory(), "needs", None) != "losses" and not hasattr(factory(), "step")
}


@pytest.mark.parametrize("tiny", [1e-200, 1e-170, 3e-162])
@pytest.mark.parametrize("name", CALLED)
def test_methods_that_are_called_on_a_matrix(name: str, tiny: float) -> None:
    def called(scale: float) -> Tensor:
        method = METHODS[name]()
        rows = SLOPES * torch.tensor([1.0, scale, 1.0], dtype=torch.float64)[:, None]
        torch.manual_seed(0)
        found: Tensor = method(rows)
        return found

    try:
        like = called(1e-100)
    except Exception as error:  # noqa: BLE001  # it wants more than a matrix
        pytest.skip(str(error))
    found, refused = tried(lambda: called(tiny))
    if refused:
        assert [row for row in range(3) if f"row {row}" in refused or f"'task {row}'" in refused] == [1]
        return
    assert found is not None
    torch.testing.assert_close(found, like, rtol=1e-9, atol=1e-90)


@pytest.mark.parametrize("metric", [cosines, dominated_conflict, imbalance_ratio])
def test_metrics(metric: Callable[..., Tensor]) -> None:
    rows = torch.tensor([[1.0, 0.0], [-1e-170, 1e-170]], dtype=torch.float64)
    with pytest.raises(InvalidJacobianError, match="1e-170 in row 1"):
        metric(rows)
    metric(torch.tensor([[1.0, 0.0], [-1e-100, 1e-100]]).double())
