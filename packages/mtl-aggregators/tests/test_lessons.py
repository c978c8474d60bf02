"""Silent failures seen in other implementations, each absent here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import MGDA, CAGrad, DualProj, FairGrad, IMGrad, MoCo, NashMTL, SDMGrad, UPGrad, available, make
from mtl_aggregators.solvers import fair_residual, min_norm
from mtl_core import individual_progress
from mtl_core.extension import gramian_of


def draws(n_tasks: int, ratio: float, count: int = 50) -> list[Tensor]:
    """Jacobians whose row norms lie between 1 and ``ratio``."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(count):
        rows = torch.randn(n_tasks, n_tasks + 3, generator=generator, dtype=torch.float64)
        norms = torch.logspace(0, float(torch.tensor(ratio).log10()), n_tasks, dtype=torch.float64)
        out.append(rows / rows.norm(dim=1, keepdim=True) * norms[:, None])
    return out


@pytest.mark.parametrize("ratio", [1.0, 10.0, 30.0, 100.0, 1e6])
@pytest.mark.parametrize("n_tasks", [2, 3, 10])
def test_upgrad_does_not_conflict_when_norms_differ(ratio: float, n_tasks: int) -> None:
    for rows in draws(n_tasks, ratio):
        for method in (UPGrad(), DualProj()):
            assert float(individual_progress(rows, method(rows)).min()) >= -1e-9


def test_small_gradients_are_not_taken_for_zero() -> None:
    rows = torch.tensor([[1.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    for method in (UPGrad(), DualProj(), CAGrad(), IMGrad(), MGDA()):
        expected = method(rows)
        for scale in (1e-3, 1e-8, 1e-100, 1e8):
            assert torch.allclose(method(rows * scale) / scale, expected, rtol=1e-9)


@pytest.mark.parametrize("method", [MGDA(), CAGrad(), IMGrad(), UPGrad(), DualProj(), NashMTL(), FairGrad(alpha=2.0)])
def test_a_task_without_gradient_does_not_freeze_the_others(method: torch.nn.Module) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
    update = method(rows)
    assert float(update.norm()) > 0.1
    alone = method(rows[[0, 2]])
    assert float(torch.nn.functional.cosine_similarity(update, alone, dim=0)) == pytest.approx(1.0)


def frank_wolfe(gramian: Tensor, steps: int) -> Tensor:
    weights = torch.full((len(gramian),), 1.0 / len(gramian), dtype=torch.float64)
    for _ in range(steps):
        image = gramian @ weights
        vertex = int(image.argmin())
        here, there, across = weights @ image, gramian[vertex, vertex], image[vertex]
        step = ((here - across) / (here + there - 2 * across)).clamp(0.0, 1.0)
        weights = weights * (1 - step)
        weights[vertex] += step
    return weights


def test_mgda_does_not_conflict_where_frank_wolfe_does() -> None:
    conflicts = 0
    for rows in draws(10, 10.0):
        opposed = rows - 0.9 * rows.mean(dim=0)
        assert float(individual_progress(opposed, MGDA()(opposed)).min()) >= 0.0
        approximate = frank_wolfe(gramian_of(opposed), 20) @ opposed
        conflicts += float(individual_progress(opposed, approximate).min()) < -1e-2
    assert conflicts > 25


def test_mgda_reports_its_residual() -> None:
    method = MGDA()
    method(draws(10, 10.0)[0])
    assert method.last_solution is not None
    assert method.last_solution.residual <= 1e-14
    vertex = torch.tensor([[0.1, 0.0], [5.0, 1.0], [4.0, -2.0]], dtype=torch.float64)
    assert min_norm(gramian_of(vertex).numpy()).value.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_is_solved_at_any_scale(alpha: float) -> None:
    for rows in draws(5, 10.0, count=10):
        for scale in (1e-8, 1e-3, 1.0, 1e5):
            gramian = gramian_of(rows * scale)
            weights = FairGrad(alpha=alpha).weights(gramian)
            assert fair_residual(gramian.numpy(), weights.numpy(), alpha) <= 1e-10


def test_least_squares_on_the_raw_gramian_is_not_solved() -> None:
    released = FairGrad(alpha=2.0, variant="released")
    released.weights(gramian_of(draws(5, 1.0)[0] * 1e-3))
    assert released.last_solution is not None
    assert released.last_solution.residual > 1e-1


@pytest.mark.parametrize("n_tasks", [1, 3, 11, 40])
def test_nash_needs_no_convex_solver(n_tasks: int) -> None:
    for rows in draws(n_tasks, 100.0, count=5):
        gramian = gramian_of(rows)
        assert fair_residual(gramian.numpy(), NashMTL().weights(gramian).numpy(), 1.0) <= 1e-10


@pytest.mark.parametrize("name", [name for name in available() if make(name).facts.needs in ("gramian", "jacobian")])
def test_the_scale_of_an_update_is_declared(name: str) -> None:
    method = make(name)
    if getattr(method, "takes_losses", False) or name == "dbmtl":
        pytest.skip("its update depends on the losses")
    row = torch.tensor([0.6, 0.8], dtype=torch.float64)
    assert float(method(row.expand(5, 2)) @ row) / 5 == pytest.approx(method.facts.scale(5)), method.facts.scale.formula


def test_three_batches_are_three() -> None:
    """One buffer for all three gradients would make the matrix that of one batch: symmetric."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2, bias=False)

    def two_losses(model: torch.nn.Module, x: Tensor) -> Tensor:
        z = model(x)
        return torch.stack([(z.sum(dim=1) - x[:, 0]).square().mean(), (z[:, 0] - x[:, 1]).square().mean()])

    problem = mtl_core.Problem(model, two_losses, shared=model, tasks=("a", "b"))
    seen: list[Tensor] = []

    class Spy(SDMGrad):
        def weigh(self, cross: Tensor) -> Tensor:
            seen.append(cross)
            return super().weigh(cross)

    left, right, update = (torch.randn(6, 4) for _ in range(3))
    jacobians = [
        mtl_core.collect(problem.losses(b).values, problem.shared).matrix.double() for b in (left, right, update)
    ]
    assert not any(torch.allclose(jacobians[i], jacobians[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = mtl_core.step(problem, torch.cat([left, right, update]), optimizer, Spy())
    assert torch.allclose(seen[0], jacobians[0] @ jacobians[1].T, atol=1e-6)
    assert not torch.allclose(seen[0], seen[0].T, atol=1e-3)
    assert report.weights is not None
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad.flatten().double(), report.weights.double() @ jacobians[2], atol=1e-6)


def test_both_algorithms_called_moco_are_there() -> None:
    rows, losses = draws(3, 10.0)[0], torch.tensor([1.0, 2.0, 3.0])
    paper, libmtl = MoCo(variant="paper"), MoCo(variant="libmtl")
    for _ in range(2):
        first, second = paper(rows, losses=losses), libmtl(rows, losses=losses)
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) < 0.99
