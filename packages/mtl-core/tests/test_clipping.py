"""What is clipped: the shared gradient, all of it, or what a callable says; the same for every kind of method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_core import InvalidParameterError, StepOptions, step
from mtl_core.testing import small_problem


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


KINDS: list[Callable[[], Any]] = [Equal, Total, lambda: lambda jacobian: jacobian.sum(0)]


def moved(kind: Callable[[], Any], **options: Any) -> tuple[Tensor, Tensor]:
    """The gradients of the shared parameters and of the heads that plain descent followed."""
    problem, batch = small_problem()
    before = [[p.detach().clone() for p in part] for part in (problem.shared, problem.heads)]
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if options.pop("scaled", False) else None
    step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=1.0), kind(), scaler=scaler, **options)
    shared, heads = (
        torch.cat([(q - p).detach().flatten() for p, q in zip(part, held, strict=True)])
        for part, held in zip((problem.shared, problem.heads), before, strict=True)
    )
    return shared, heads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaled", [False, True])
def test_shared_all_and_by_callable(kind: Callable[[], Any], scaled: bool) -> None:
    shared, heads = moved(kind, scaled=scaled)
    whole = torch.cat([shared, heads])
    limit = 0.1
    assert float(shared.norm()) > limit
    found, untouched = moved(kind, max_norm=limit, scaled=scaled)
    torch.testing.assert_close(found, shared * (limit / (shared.norm() + 1e-6)))
    torch.testing.assert_close(untouched, heads)
    torch.testing.assert_close(
        torch.cat(moved(kind, max_norm=limit, clip="all", scaled=scaled)), whole * (limit / (whole.norm() + 1e-6))
    )
    by_value = partial(torch.nn.utils.clip_grad_value_, clip_value=0.01)
    torch.testing.assert_close(torch.cat(moved(kind, clip=by_value, scaled=scaled)), whole.clamp(-0.01, 0.01))


def test_two_ways_at_once() -> None:
    with pytest.raises(InvalidParameterError, match="`max_norm` must be None where `clip` is a callable"):
        StepOptions(max_norm=1.0, clip=lambda parameters: None)
    with pytest.raises(InvalidParameterError, match="`clip` must be one of 'shared', 'all', got 'heads'"):
        StepOptions(clip="heads")  # type: ignore[arg-type]
