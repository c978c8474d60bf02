"""Worked examples, hyper-parameters and stated deviations of every method."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_aggregators
from mtl_aggregators import LS, MGDA, CAGrad, FairGrad, NashMTL, PCGrad, UPGrad
from mtl_core import InvalidInputError, InvalidJacobianError, InvalidParameterError, SolverError, individual_progress
from mtl_core.extension import gramian_of

GRAMIAN_METHODS = (MGDA, PCGrad, CAGrad, FairGrad, NashMTL, UPGrad)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (MGDA(), rows([2.0, 0.0], [0.0, 1.0]), [0.4, 0.8]),
        (MGDA(normalization="l2"), rows([2.0, 0.0], [0.0, 1.0]), [1.0, 0.5]),
        (MGDA(paper_scale=True), rows([2.0, 0.0], [0.0, 1.0]), [0.8, 1.6]),
        (PCGrad(), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 1.5]),
        (PCGrad(reduction="mean"), rows([1.0, 0.0], [-1.0, 1.0]), [0.25, 0.75]),
        (PCGrad(), rows([1.0, 0.0], [0.5, 1.0]), [1.5, 1.0]),
        (CAGrad(c=0.5), rows([1.0, 0.0], [0.0, 1.0]), [0.75, 0.75]),
        (CAGrad(c=0.5, rescale="c"), rows([1.0, 0.0], [0.0, 1.0]), [0.5, 0.5]),
        (CAGrad(c=0.5, rescale="c2"), rows([1.0, 0.0], [0.0, 1.0]), [0.6, 0.6]),
        (CAGrad(c=0.5, paper_scale=True), rows([1.0, 0.0], [0.0, 1.0]), [1.2, 1.2]),
        (CAGrad(c=0.0), rows([1.0, 0.0], [-3.0, 1.0]), [-1.0, 0.5]),
        (FairGrad(alpha=1.0), rows([2.0, 0.0], [0.0, 1.0]), [1.0, 1.0]),
        (FairGrad(alpha=2.0), rows([8.0, 0.0], [0.0, 1.0]), [0.5, 1.0]),
        (FairGrad(alpha=2.0, paper_scale=True), rows([8.0, 0.0], [0.0, 1.0]), [1.0, 2.0]),
        (NashMTL(), rows([4.0, 0.0], [0.0, 0.1]), [1.0, 1.0]),
        (NashMTL(paper_scale=True), rows([3.0, 0.0], [0.0, 3.0]), [1.0, 1.0]),
        (UPGrad(), rows([1.0, 0.0], [-1.0, 1.0]), [0.25, 0.75]),
        (UPGrad(preference=[1.0, 0.0]), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 0.5]),
        (UPGrad(preference=[0.0, 2.0]), rows([1.0, 0.0], [-1.0, 1.0]), [0.0, 2.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update)


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_one_task(method: Any) -> None:
    gradient = rows([3.0, 4.0])
    update = method()(gradient)
    assert individual_progress(gradient, update).tolist() == pytest.approx([1.0])
    assert torch.isfinite(method().weights(torch.zeros(1, 1))).all()


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_dtype_and_shape_follow_the_gradients(method: Any) -> None:
    jacobian = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        update = method()(jacobian.to(dtype))
        assert update.dtype == dtype
        assert update.shape == (7,)
    weights = method().weights(gramian_of(jacobian))
    assert weights.dtype == torch.float64
    assert weights.shape == (3,)


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_bad_matrices(method: Any) -> None:
    with pytest.raises(InvalidJacobianError, match="two dimensions"):
        method()(torch.zeros(3))
    with pytest.raises(InvalidJacobianError, match="floating"):
        method()(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(InvalidJacobianError, match="finite"):
        method()(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InvalidJacobianError, match="square"):
        method().weights(torch.zeros(3, 2))
    with pytest.raises(InvalidJacobianError, match="finite"):
        method().weights(torch.full((2, 2), float("inf")))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ls", {"weights": [1.0, -1.0]}),
        ("ls", {"weights": []}),
        ("ls", {"weights": [0.0, 0.0]}),
        ("ls", {"weights": [float("nan")]}),
        ("ls", {"weights": "ab"}),
        ("ls", {"reduction": "max"}),
        ("mgda", {"normalization": "l1"}),
        ("pcgrad", {"reduction": "max"}),
        ("cagrad", {"c": -0.1}),
        ("cagrad", {"c": float("inf")}),
        ("cagrad", {"rescale": "c3"}),
        ("fairgrad", {"alpha": 0.0}),
        ("fairgrad", {"alpha": -1.0}),
        ("fairgrad", {"variant": "mine"}),
        ("fairgrad", {"ridge": 0.0}),
        ("nashmtl", {"solver": "ecos"}),
        ("nashmtl", {"update_weights_every": 0}),
        ("nashmtl", {"update_weights_every": 1.5}),
        ("nashmtl", {"ridge": -1.0}),
        ("upgrad", {"preference": [1.0, -1.0]}),
        ("upgrad", {"preference": [[1.0]]}),
        ("upgrad", {"ridge": -1e-3}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        mtl_aggregators.make(name, **parameters)


def test_scalarisation() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert LS()(losses).item() == 7.0
    assert LS(reduction="mean")(losses).item() == pytest.approx(7 / 3)
    weighted = LS(weights=[1.0, 0.5, 0.25])(losses)
    assert weighted.item() == 3.0
    assert torch.autograd.grad(weighted, losses)[0].tolist() == [1.0, 0.5, 0.25]
    present = torch.tensor([True, False, True])
    assert LS(reduction="mean")(losses, present=present).item() == 2.5
    with pytest.raises(InvalidInputError, match="one loss per weight"):
        LS(weights=[1.0, 2.0])(losses)
    with pytest.raises(InvalidInputError, match="shape"):
        LS()(torch.tensor(1.0))


def test_mgda_normalised_by_losses() -> None:
    gramian = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    losses = torch.tensor([2.0, 1.0])
    # g_1/2 and g_2 have equal norms; with l2 on top they are 1/2 and 1 long.
    assert MGDA(normalization="loss").weights(gramian, losses=losses).tolist() == pytest.approx([0.5, 0.5])
    assert MGDA(normalization="loss+").weights(gramian, losses=losses).tolist() == pytest.approx([0.8, 0.2])
    with pytest.raises(InvalidInputError, match="`losses` must be given"):
        MGDA(normalization="loss").weights(gramian)
    with pytest.raises(InvalidInputError, match="must be positive"):
        MGDA(normalization="loss").weights(gramian, losses=torch.tensor([1.0, 0.0]))
    absent = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    weights = MGDA(normalization="loss+").weights(absent, losses=torch.tensor([2.0, float("nan")]))
    assert weights.tolist() == [1.0, 0.0]


def sequential_pcgrad(jacobian: Tensor, orders: list[list[int]]) -> Tensor:
    """PCGrad as it is printed, on the gradients themselves."""
    total = torch.zeros_like(jacobian[0])
    for i, order in enumerate(orders):
        projected = jacobian[i].clone()
        for j in order:
            inner = projected @ jacobian[j]
            if inner < 0:
                projected -= inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += projected
    return total


def test_pcgrad_is_one_of_the_orders() -> None:
    jacobian = torch.randn(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    possible = []
    for choice in itertools.product([0, 1], repeat=3):
        others = [[j for j in range(3) if j != i] for i in range(3)]
        orders = [list(reversed(o)) if flip else o for o, flip in zip(others, choice, strict=True)]
        possible.append(sequential_pcgrad(jacobian, orders))
    method = PCGrad(generator=torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(40):
        update = method(jacobian)
        matches = [k for k, p in enumerate(possible) if torch.allclose(p, update, atol=1e-12)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 1


def test_pcgrad_generator_alone_decides() -> None:
    jacobian = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = [PCGrad(generator=torch.Generator().manual_seed(5))(jacobian) for _ in range(2)]
    assert torch.equal(first[0], first[1])
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    PCGrad()(jacobian)
    assert torch.equal(before, torch.random.get_rng_state())


def test_fairgrad_released_variant_is_the_same_problem() -> None:
    jacobian = rows([1.0, 0.2, 0.0], [-0.3, 1.0, 0.1], [0.4, 0.4, 2.0])
    released = FairGrad(alpha=2.0, variant="released")
    assert released(jacobian).tolist() == pytest.approx(FairGrad(alpha=2.0)(jacobian).tolist(), rel=1e-4)
    assert released.last_solution is not None
    assert released.last_solution.residual < 1e-3


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


def test_preference_must_match_the_tasks() -> None:
    with pytest.raises(InvalidInputError, match="one entry per task"):
        UPGrad(preference=[1.0, 1.0]).weights(torch.eye(3))


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
