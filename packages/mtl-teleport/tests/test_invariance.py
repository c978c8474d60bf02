"""Moves of ReLU networks that keep every loss exactly: what a teleport must then say is known by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import Problem
from mtl_core.extension import collect_problem
from mtl_teleport import TeleportReport, WeakConflict
from mtl_teleport.move import Proposal
from mtl_teleport.search_context import Search
from mtl_teleport.teleportation import Teleportation

HIDDEN = 5


class Given(Teleportation):
    """Proposes a displacement that is given."""

    def __init__(self, delta: Mapping[str, Tensor], *, max_drift: float = 0.02) -> None:
        super().__init__(
            None,
            trigger=WeakConflict(),
            start_after=0,
            max_per_epoch=None,
            steps_per_epoch=None,
            probe_batches=None,
            max_probe_batches=1,
            max_drift=max_drift,
            backtracks=0,
            htr="keep",
            seed=0,
        )
        self._delta = dict(delta)

    def _propose(self, search: Search) -> Proposal:
        return Proposal(self._delta)


def network(seed: int) -> tuple[Problem, Tensor]:
    """Two outputs of a ReLU network of one hidden layer, float64, every parameter shared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)).double()
        x = torch.randn(16, 4, dtype=torch.float64)
        target = torch.randn(16, 2, dtype=torch.float64)

    def losses(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - target).square().mean(0)

    return Problem(net, losses, shared=net, tasks=("a", "b")), x


def teleport(problem: Problem, x: Tensor, values: Mapping[str, Tensor]) -> TeleportReport:
    gradients = collect_problem(problem, problem.losses(x))
    delta = {name: values[name] - p.detach() for name, p in problem.named_shared.items() if name in values}
    return Given(delta).teleport(problem, [x], gradients)


def gradients_of(problem: Problem, x: Tensor) -> list[dict[str, Tensor]]:
    names = problem.shared_names
    return [
        dict(zip(names, torch.autograd.grad(loss, problem.shared), strict=True))
        for loss in (problem.losses(x).values[i] for i in range(2))
    ]


def size(parts: list[Tensor]) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


@given(
    seed=st.integers(0, 50),
    factors=st.lists(st.floats(0.05, 20.0), min_size=HIDDEN, max_size=HIDDEN),
)
def test_positive_rescaling_of_hidden_units(seed: int, factors: list[float]) -> None:
    """Incoming weights times a, outgoing ones by a: no loss changes, and gradients change by the inverse factors."""
    problem, x = network(seed)
    a = torch.tensor(factors, dtype=torch.float64)
    named = {name: p.detach().clone() for name, p in problem.named_shared.items()}
    rows = gradients_of(problem, x)
    before = problem.losses(x).values.detach()
    values = {
        "0.weight": named["0.weight"] * a[:, None],
        "0.bias": named["0.bias"] * a,
        "2.weight": named["2.weight"] / a,
    }
    predicted = [
        {
            "0.weight": g["0.weight"] / a[:, None],
            "0.bias": g["0.bias"] / a,
            "2.weight": g["2.weight"] * a,
            "2.bias": g["2.bias"],
        }
        for g in rows
    ]
    report = teleport(problem, x, values)
    assert report.drift <= 1e-12
    assert report.accepted == bool(any(abs(f - 1) > 0 for f in factors))
    if not report.accepted:
        return
    torch.testing.assert_close(problem.losses(x).values, before, rtol=1e-12, atol=1e-12)
    assert report.norms_after == pytest.approx([size(list(g.values())) for g in predicted], rel=1e-9)
    mean = [(u + v) / 2 for u, v in zip(predicted[0].values(), predicted[1].values(), strict=True)]
    assert report.mean_norm_after == pytest.approx(size(mean), rel=1e-9)
    cosines = []
    for g in predicted:
        inner = sum(float((u * v).sum()) for u, v in zip(g.values(), mean, strict=True))
        cosines.append(inner / size(list(g.values())) / size(mean))
    assert report.cosines_after == pytest.approx(cosines, abs=1e-9)
    assert report.length == pytest.approx(size([values[name] - named[name] for name in values]), rel=1e-9)


@given(seed=st.integers(0, 50), order=st.permutations(range(HIDDEN)))
def test_permutation_of_hidden_units(seed: int, order: list[int]) -> None:
    """A permutation keeps every loss, norm and cosine, however far it goes."""
    problem, x = network(seed)
    named = {name: p.detach().clone() for name, p in problem.named_shared.items()}
    values = {
        "0.weight": named["0.weight"][order],
        "0.bias": named["0.bias"][order],
        "2.weight": named["2.weight"][:, order],
    }
    report = teleport(problem, x, values)
    assert report.drift <= 1e-12
    if order == sorted(order):
        assert (report.accepted, report.reason) == (False, "the displacement is zero")
        return
    assert report.accepted
    assert report.length > 0.01
    assert report.norms_after == pytest.approx(report.norms_before, rel=1e-9)
    assert report.cosines_after == pytest.approx(report.cosines_before, abs=1e-9)
    assert report.mean_norm_after == pytest.approx(report.mean_norm_before, rel=1e-9)


def test_an_inexact_move_has_a_drift() -> None:
    """The oracle can fail: rescaling one side alone changes the losses, and is rolled back."""
    problem, x = network(0)
    report = teleport(problem, x, {"0.weight": 1.5 * problem.named_shared["0.weight"].detach()})
    assert not report.accepted
    assert report.drift > 0.02
