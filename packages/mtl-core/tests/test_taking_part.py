"""Which parameters take part in a step: the same on every route, in ``.grad``, in the update and in the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import MicroBatches, Problem, collect, collect_per_task, step


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


class Total:
    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return losses.sum()


class Doubled(Total):
    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return 2.0 * losses.sum()


ROUTES: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "gramian": (Equal, {}, 1),
    "features": (Equal, {"keep": "features"}, 1),
    "no jacobian": (Equal, {"keep": "gramian"}, 1),
    "batched": (Equal, {"chunk_size": 2}, 1),
    "jacobian": (lambda: lambda jacobian: jacobian.sum(0), {}, 1),
    "layer": (Equal, {"per": "layer"}, 1),
    "losses": (Total, {}, 1),
    "two passes": (Doubled, {}, 1),
    "gramian in parts": (Equal, {}, 2),
    "jacobian in parts": (lambda: lambda jacobian: jacobian.sum(0), {}, 2),
    "losses in parts": (Total, {}, 2),
}


def make(features: bool) -> tuple[Problem, Tensor]:
    """Two layers, of which the second is used by the absent task ``b`` only, and a frozen third."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("first", "second", "third", "a", "b", "c")})
    model["third"].requires_grad_(False)

    def losses(model: Any, x: Tensor) -> Any:
        z = model["third"](model["first"](x))
        found = {"a": model["a"](z).square().mean(), "c": model["c"](z).square().mean()}
        return (found, z) if features else found

    shared = [model["first"], model["second"], model["third"]]
    return Problem(model, losses, shared=shared, tasks=("a", "b", "c")), torch.randn(4, 2)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("small", [True, False])
def test_what_no_present_task_touches_does_not_move(route: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    method, options, parts = ROUTES[route]
    problem, x = make(route == "features")
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=0.1, weight_decay=0.5)
    idle = [*problem.model["second"].parameters(), *problem.model["b"].parameters()]  # type: ignore[index]
    before = [p.detach().clone() for p in idle]
    for _ in range(20):
        report = step(problem, MicroBatches(x.chunk(parts)) if parts > 1 else x, optimizer, method(), **options)
        assert sorted(report.skipped) == ["second.bias", "second.weight", "third.bias", "third.weight"]
        assert all(p.grad is None for p in idle)
    assert all(torch.equal(p, q) for p, q in zip(before, idle, strict=True))


@pytest.mark.parametrize("keep", ["jacobian", "gramian"])
def test_by_hand(keep: Any) -> None:
    problem, x = make(False)
    grads = collect(problem.losses(x).outputs, problem.shared, keep=keep)
    assert [problem.shared_names[k] for k in grads.untouched] == ["second.weight", "second.bias"]
    for p in problem.shared:
        p.grad = torch.ones_like(p)
    grads.assign(grads.combine(torch.ones(2)))
    assert [p.grad is None for p in problem.shared] == [False, False, True, True]


def test_a_skipped_update_says_so_too() -> None:
    problem, x = make(False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    report = step(problem, x * 1e3, optimizer, Equal(), scaler=scaler)
    assert [event.kind for event in report.events] == ["skipped_update"]
    assert sorted(report.skipped) == ["second.bias", "second.weight", "third.bias", "third.weight"]


def test_a_batch_per_task() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1), "dropout": nn.Dropout(0.5)})
    before = torch.get_rng_state()
    grads = collect_per_task(model, lambda model, x: model["used"](x).sum(), [torch.ones(1, 2), torch.ones(1, 2)])
    assert grads.untouched == (2, 3)
    grads.assign(grads.combine(torch.ones(2)))
    assert [p.grad is None for p in model.parameters()] == [False, False, True, True]
    assert torch.equal(torch.get_rng_state(), before)
