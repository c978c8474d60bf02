"""Our methods keep to TorchJD's contract, and its methods to ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mtl_core
from mtl_aggregators import MGDA, PCD, AlignedMTL, CAGrad, ConFIG, GradDrop, Krum, UPGrad, available, make
from mtl_aggregators.conformance import check_aggregator, check_law
from mtl_core.testing import jacobian_of, small_problem

aggregation = pytest.importorskip("torchjd.aggregation")

ON_JACOBIANS = [
    name
    for name in available()
    if make(name).facts.needs in ("gramian", "jacobian") and name not in ("dbmtl", "gradnorm", "imtl")
]


@pytest.mark.parametrize("name", ON_JACOBIANS)
def test_ours_are_modules_from_a_matrix_to_a_vector(name: str) -> None:
    method = make(name)
    assert isinstance(method, torch.nn.Module)
    for m, n in ((3, 5), (5, 3), (3, 1)):
        matrix = torch.randn(m, n)
        fresh = make(name)
        update = fresh(matrix)
        assert update.shape == (n,)
        assert update.dtype == matrix.dtype
        assert bool(torch.isfinite(update).all())


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "CAGrad", "PCGrad", "AlignedMTL"])
def test_ours_drive_their_engine(name: str) -> None:
    from torchjd.autojac import backward, jac_to_grad

    model = torch.nn.Linear(3, 2)
    output = model(torch.randn(4, 3)).square().mean(dim=0)
    backward(list(output))
    jac_to_grad(model.parameters(), make(name))
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


THEIRS: dict[str, Callable[[], Any]] = {
    "Sum": aggregation.Sum,
    "Mean": aggregation.Mean,
    "MGDA": aggregation.MGDA,
    "PCGrad": aggregation.PCGrad,
    "CAGrad": lambda: aggregation.CAGrad(c=0.4),
    "IMTLG": aggregation.IMTLG,
    "AlignedMTL": aggregation.AlignedMTL,
    "ConFIG": aggregation.ConFIG,
}


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_step(name: str) -> None:
    problem, batch = small_problem(3)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.01)
    before = problem.losses(batch).values.detach().sum()
    for _ in range(10):
        mtl_core.step(problem, batch, optimizer, THEIRS[name]())
    assert float(problem.losses(batch).values.detach().sum()) < float(before)


def test_theirs_can_be_held_to_our_laws() -> None:
    check_aggregator(aggregation.Mean, {"permutation", "orthogonal", "homogeneous", "equal_rows"}, max_examples=5)
    far = torch.tensor([[10.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(AssertionError):
        check_law(aggregation.Mean, "non_conflicting", torch.tensor([[1.0, 0.0], [-3.0, 1.0]], dtype=torch.float64))
    assert float((far @ UPGrad()(far)).min()) >= -1e-12


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MGDA(), aggregation.MGDA(epsilon=1e-12, max_iters=20000)),
        (CAGrad(c=0.4), aggregation.CAGrad(c=0.4)),
        (ConFIG(), aggregation.ConFIG()),
        (Krum(), aggregation.Krum(n_byzantine=0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_same_updates_on_easy_gradients(ours: Any, theirs: Any) -> None:
    for seed in range(3):
        rows = jacobian_of("balanced", n_tasks=3, n_parameters=8, seed=seed)
        expected = theirs(rows)
        assert float((ours(rows) - expected).norm() / expected.norm()) < 2e-2


def test_conventions_that_differ() -> None:
    rows = jacobian_of("balanced", n_tasks=3, n_parameters=8, seed=0)
    # The paper's preference is one per task; theirs is the mean.
    assert torch.allclose(AlignedMTL()(rows), 3 * aggregation.AlignedMTL()(rows), rtol=1e-6)
    same = torch.ones(3, 4)
    assert torch.equal(GradDrop()(same), aggregation.GradDrop()(same))


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
def test_pcd_is_the_same_update_step_after_step(n_tasks: int) -> None:
    ours, theirs = PCD(tau=0.1), aggregation.PCD(tau=0.1, eps=0.0)
    generator = torch.Generator().manual_seed(n_tasks)
    for _ in range(4):
        jacobian = torch.randn(n_tasks, n_tasks + 3, generator=generator, dtype=torch.float64)
        assert torch.allclose(ours(jacobian), theirs(jacobian), rtol=0.0, atol=1e-9)
