"""NashMTL: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import FairGrad, NashMTL
from mtl_core import InvalidInputError, InvalidParameterError, SolverError
from mtl_core.extension import gramian_of


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("paper_scale", [False, True])
def test_nash_by_convex_concave_procedure(paper_scale: bool) -> None:
    for seed in range(3):
        jacobian = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1e-3
        ccp = NashMTL(solver="ccp", paper_scale=paper_scale).weights(gramian_of(jacobian))
        newton = NashMTL(paper_scale=paper_scale).weights(gramian_of(jacobian))
        assert ccp.tolist() == pytest.approx(newton.tolist(), rel=2e-3)
    method = NashMTL(solver="ccp")
    assert method.weights(torch.tensor([[4.0]])).tolist() == pytest.approx([0.5], rel=1e-3)
    method.weights(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert method.last_solution is not None
    assert method.last_solution.regularised


def test_nash_reuses_its_weights() -> None:
    method = NashMTL(update_weights_every=2)
    first, second, third = (torch.eye(2, dtype=torch.float64) * scale for scale in (1.0, 4.0, 16.0))
    assert method.weights(first).tolist() == pytest.approx([1.0, 1.0])
    assert method.weights(second).tolist() == pytest.approx([1.0, 1.0])
    assert method.weights(third).tolist() == pytest.approx([0.25, 0.25])
    with pytest.raises(InvalidInputError, match="NashMTL must see the same number of tasks"):
        method.weights(torch.eye(3))
    method.reset()
    assert len(method.weights(torch.eye(3))) == 3


def test_regularised_solves_show_as_events() -> None:
    for method in (NashMTL(), FairGrad(alpha=2.0)):
        method.weights(torch.eye(2))
        assert method.pop_events() == ()
        method.weights(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        (event,) = method.pop_events()
        assert event.kind == "regularised_solve"
        assert event.as_dict()["method"] == type(method).__name__
        assert method.pop_events() == ()


def test_a_failing_solver_is_not_turned_into_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules["mtl_aggregators.solvers.fair_point"], "MAX_STEPS", 1)
    with pytest.raises(SolverError):
        NashMTL().weights(torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.0], [0.1, 0.0, 1.0]]))


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (NashMTL(), rows([4.0, 0.0], [0.0, 0.1]), [1.0, 1.0]),
        (NashMTL(paper_scale=True), rows([3.0, 0.0], [0.0, 3.0]), [1.0, 1.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nashmtl", {"solver": "ecos"}),
        ("nashmtl", {"update_weights_every": 0}),
        ("nashmtl", {"update_weights_every": 1.5}),
        ("nashmtl", {"ridge": -1.0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)
