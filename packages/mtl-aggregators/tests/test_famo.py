"""FAMO: numbers by hand, settings, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from mtl_aggregators import (
    FAMO,
    GLS,
    SI,
)
from mtl_core import InvalidInputError, InvalidParameterError


def close(*expected: float) -> Any:
    return pytest.approx(list(expected), rel=1e-6, abs=1e-12)


def test_famo_learns_from_the_logarithms(weights_of: Callable[..., Any]) -> None:
    method = FAMO(gamma=0.0, lr=0.1)
    before, after = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.0])
    method.after_step(before, lambda: after)
    # delta = (log 2, 0); gradient z (delta - z.delta) = (log 2)/4 (1, -1): the task that improved loses weight.
    assert method.trained is not None
    assert method.trained.tolist() == close(-0.1, 0.1)
    share = 1.0 / (1.0 + math.exp(0.2))
    assert weights_of(method, [1.0, 1.0]) == close(share, 1 - share)


def test_famo_decays() -> None:
    assert FAMO().gamma == 1e-3
    assert FAMO(variant="released").gamma == 1e-5
    assert FAMO(variant="released", gamma=0.5).gamma == 0.5
    method = FAMO(gamma=1.0, lr=0.1)
    method.after_step(torch.ones(2), lambda: torch.tensor([0.5, 1.0]))
    for _ in range(200):
        method.after_step(torch.ones(2), lambda: torch.ones(2))
    assert method.trained is not None
    assert float(method.trained.abs().max()) < 0.05


def test_famo_against_torch_adam() -> None:
    method = FAMO(gamma=0.01)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        before, after = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1
        method.after_step(before, lambda after=after: after)  # type: ignore[misc]
        delta = (before + 1e-8).log() - (after + 1e-8).log()
        logits.grad = torch.autograd.grad(logits.softmax(0), logits, delta)[0]
        adam.step()
    assert method.trained is not None
    assert torch.allclose(method.trained, logits.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factory", [SI, GLS, FAMO, partial(FAMO, tasks=("seg", "depth"))])
def test_losses_under_their_bound_are_refused_by_name(factory: Any) -> None:
    name = "depth" if isinstance(factory, partial) else "task 1"
    with pytest.raises(InvalidInputError, match=f"must (be positive|lie above their lower bound).*{name}: 0[ .]"):
        factory()(torch.tensor([1.0, 0.0]))


def test_famo_refuses_after_the_update_too() -> None:
    with pytest.raises(InvalidInputError, match="depth: -2"):
        FAMO(tasks=("seg", "depth")).after_step(torch.ones(2), lambda: torch.tensor([1.0, -2.0]))
    with pytest.raises(InvalidInputError, match="task 0: nan"):
        FAMO().after_step(torch.ones(2), lambda: torch.tensor([float("nan"), 1.0]))
    with pytest.raises(InvalidInputError, match="one loss per bound, 2, got 3"):
        FAMO(bound=[0.0, 0.0])(torch.ones(3))


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        (FAMO(), [1.0, 3.0], [0.75, 0.25]),
        (FAMO(bound=[0.0, 2.0]), [1.0, 3.0], [0.5, 0.5]),
    ],
)
def test_weights_by_hand(
    method: Any, losses: list[float], expected: list[float], weights_of: Callable[..., Any]
) -> None:
    assert weights_of(method, losses) == close(*expected)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (FAMO, {"gamma": -1.0}),
        (FAMO, {"eps": 0.0}),
        (FAMO, {"bound": float("nan")}),
        (FAMO, {"variant": "x"}),
    ],
)
def test_settings_out_of_range(factory: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(setting))}` must"):
        factory(**setting)
