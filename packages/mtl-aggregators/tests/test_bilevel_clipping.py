"""Clipping in bilevel methods: trial and real steps by one rule, and a rule that learns sees the real ones only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_aggregators import LS, MARIGOLD, UPGrad, WorstCaseDecrement
from mtl_aggregators.bilevel.hypergradient import exact_hypergradient
from mtl_aggregators.bilevel.objectives import Outcome
from mtl_core import InvalidInputError, StepOptions, UpdateEvery, step
from mtl_core.testing import small_problem

MODES: dict[str, tuple[dict[str, Any], int]] = {
    "trial": ({}, 2),
    "antithetic": ({"estimate": "antithetic"}, 2),
    "symmetric": ({"estimate": "symmetric"}, 3),
    "fused": ({"lookahead": "fused"}, 1),
    "fused next": ({"lookahead": "fused", "probe": "next"}, 1),
}
"""By name, settings and how often a step is clipped."""


class MeanNorm:
    """Clips to the mean of the norms so far: what it sees changes what it does."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.calls = 0

    def __call__(self, parameters: Sequence[Tensor]) -> None:
        self.calls += 1
        norm = float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None])))
        self.norms = [*self.norms, norm]
        limit = 0.5 * sum(self.norms) / len(self.norms)
        torch.nn.utils.clip_grad_norm_(parameters, limit)


class Remembering(MeanNorm):
    """The same, with the two methods by which it can be put back."""

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms = state["norms"]


class AsModule(nn.Module):
    """The same as a module, whose memory is a buffer that it writes to."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, parameters: Sequence[Tensor]) -> None:
        self.total += torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]))
        self.count += 1
        torch.nn.utils.clip_grad_norm_(parameters, float(0.5 * self.total / self.count))

    @property
    def norms(self) -> range:
        return range(int(self.count))


REMEMBERING: list[Callable[[], Any]] = [Remembering, AsModule]


@pytest.mark.parametrize("make", REMEMBERING)
@pytest.mark.parametrize("mode", MODES)
def test_what_it_learns_is_learnt_from_real_steps(mode: str, make: Callable[[], Any]) -> None:
    settings, _ = MODES[mode]
    problem, batch = small_problem(3)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    clip, method = make(), MARIGOLD(generator=torch.Generator().manual_seed(0), **settings)
    for k in range(1, 4):
        step(problem, batch, optimizer, method, clip=clip)
        assert len(clip.norms) == k


@pytest.mark.parametrize("mode", MODES)
def test_one_that_cannot_be_put_back_sees_the_trials(mode: str) -> None:
    settings, times = MODES[mode]
    problem, batch = small_problem(3)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    clip = MeanNorm()
    step(problem, batch, optimizer, MARIGOLD(generator=torch.Generator().manual_seed(0), **settings), clip=clip)
    assert (clip.calls, len(clip.norms)) == (times, times)


@pytest.mark.parametrize("mode", MODES)
def test_trials_are_clipped_by_the_rule(mode: str) -> None:
    """With a limit that is a number: the callable leaves the parameters where ``max_norm`` does."""
    settings, times = MODES[mode]
    found = []
    for options in ({"max_norm": 0.1, "clip": "all"}, {"clip": Counting(0.1)}):
        problem, batch = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.5)
        method = MARIGOLD(generator=torch.Generator().manual_seed(0), **settings)
        for _ in range(3):
            report = step(problem, batch, optimizer, method, **options)  # type: ignore[arg-type]
        assert report.weights is not None
        found.append(torch.cat([*(p.detach().flatten() for p in problem.model.parameters()), report.weights]))
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-12)
    clip = options["clip"]
    assert isinstance(clip, Counting)
    assert clip.calls == 3 * times


class Counting:
    """Clips to a norm, and counts."""

    def __init__(self, limit: float) -> None:
        self.limit, self.calls = limit, 0

    def __call__(self, parameters: Sequence[Tensor]) -> None:
        self.calls += 1
        torch.nn.utils.clip_grad_norm_(parameters, self.limit)


@pytest.mark.parametrize("make", REMEMBERING)
@pytest.mark.parametrize("method", [LS, lambda: UpdateEvery(UPGrad(), steps=2), MARIGOLD])
def test_a_step_that_fails_leaves_no_trace_in_it(method: Callable[[], Any], make: Callable[[], Any]) -> None:
    problem, batch = small_problem(3)
    clip = make()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step(problem, batch, optimizer, method(), clip=clip)
    before = len(clip.norms)

    def failing(*_: object) -> None:
        raise RuntimeError("while stepping")

    optimizer.register_step_pre_hook(failing)
    with pytest.raises(RuntimeError, match="while stepping"):
        step(problem, batch, optimizer, method(), clip=clip)
    assert len(clip.norms) == before


class TestExact:
    def test_by_a_callable_is_refused(self) -> None:
        """The real step was clipped and the one that is differentiated was not."""
        problem, batch = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        before = [p.detach().clone() for p in problem.model.parameters()]
        with pytest.raises(InvalidInputError, match="needs a clipping that can be differentiated"):
            step(problem, batch, optimizer, MARIGOLD(hypergradient="exact"), clip=Counting(0.1))
        assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))

    @pytest.mark.parametrize("heads", ["unit", "weighted"])
    @pytest.mark.parametrize("clip", ["shared", "all"])
    def test_against_finite_differences(self, clip: Any, heads: Any) -> None:
        """With ``clip="all"`` the heads were left out of the norm, and not clipped."""
        problem, batch = small_problem(3)
        weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        options = StepOptions(heads=heads, max_norm=0.1, clip=clip)
        upper = WorstCaseDecrement()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.5)
        exact, _ = exact_hypergradient(problem, batch, optimizer, weights, upper, options=options)

        def value(w: Tensor) -> float:
            twin = copy.deepcopy(problem)
            before = twin.losses(batch).values.detach()

            class Fixed:
                needs = "losses"

                def __call__(self, losses: Tensor) -> Tensor:
                    return losses @ w

            step(twin, batch, torch.optim.SGD(twin.model.parameters(), lr=0.5), Fixed(), **vars(options))
            return float(upper(Outcome(twin.tasks, before, twin.losses(batch).values.detach(), w)))

        shifts = 1e-5 * torch.eye(3, dtype=torch.float64)
        slopes = torch.tensor([(value(weights + s) - value(weights - s)) / 2e-5 for s in shifts], dtype=torch.float64)
        torch.testing.assert_close(exact, slopes, rtol=1e-4, atol=1e-7)
