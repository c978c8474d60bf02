"""Worked examples, settings and oracles of the methods on gradients that are not in ``test_methods``."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import (
    CRMOGM,
    DBMTL,
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    GroupedGradVac,
    IMGrad,
    Krum,
    MoCo,
    NashMTL,
    PCGrad,
    TrimmedMean,
    make,
    plumbline,
)
from mtl_aggregators.solvers import ball_dual, fair_residual, least_distance, project_simplex
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.extension import gramian_of
from mtl_core.testing import jacobian_of


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        (DualProj(), rows([1.0, 0.0], [-3.0, 1.0]), [0.0, 0.5]),
        (DualProj(preference=[1.0, 0.0]), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 0.5]),
        (IMTLG(), AXES, [0.75, 0.75]),
        # Only zero has equal projections on opposite gradients.
        (IMTLG(), rows([1.0, 0.0], [-3.0, 0.0]), [0.0, 0.0]),
        (ConFIG(), AXES, [2.0, 2.0]),
        (ConFIG(preference=[1.0, 2.0]), rows([1.0, 0.0], [0.0, 1.0]), [0.6, 1.2]),
        (ConFIG(), rows([1.0, 0.0], [-1.0, 0.0]), [0.0, 0.0]),
        (AlignedMTL(), AXES, [1.0, 1.0]),
        (AlignedMTL(scale_mode="median"), AXES, [1.0, 1.0]),
        (AlignedMTL(scale_mode="rmse"), AXES, [5**0.5, 5**0.5]),
        (AlignedMTL(preference=[1.0, 0.0]), AXES, [1.0, 0.0]),
        (Krum(), rows([1.0, 0.0], [1.1, 0.0], [0.0, 9.0]), [1.0, 0.0]),
        (Krum(n_selected=2), rows([1.0, 0.0], [1.1, 0.0], [0.0, 9.0]), [1.05, 0.0]),
        (GradVac(), rows([1.0, 0.0], [-1.0, 1.0]), [0.5, 1.5]),
        (GradDrop(), rows([1.0, -2.0], [3.0, -1.0]), [4.0, -3.0]),
        (GradDrop(leak=[1.0, 1.0]), rows([1.0, -2.0], [-3.0, 1.0]), [-2.0, -1.0]),
        (TrimmedMean(), rows([1.0, -9.0], [2.0, 5.0], [9.0, 4.0]), [2.0, 4.0]),
        (PCD(tau=0.0), rows([1.0, 0.0], [-1.0, 1.0]), [0.5**0.5, 0.5**0.5]),
        (PCD(tau=0.0), rows([1.0, 0.0], [1.0, 5.0]), [1.0, 0.0]),
        (PCD(tau=0.5), rows([1.0, 0.0], [0.0, 7.0]), [0.8**0.5, 0.2**0.5]),
        (PCD(primary=1), rows([0.0, 0.0], [3.0, 4.0]), [3.0, 4.0]),
        (CRMOGM(MGDA()), rows([2.0, 0.0], [0.0, 1.0]), [0.4, 0.8]),
        (ExcessMTL(), AXES, [3.0, 1.0]),
        (DBMTL(beta=0.5, log_losses=False), AXES, [1.5, 1.5]),
        (MoCo(beta=1.0), rows([2.0, 0.0], [0.0, 1.0]), [0.85, 0.575]),
        # κ = 0.6 and ‖g_0‖ = √2.5: all weight goes to the second task.
        (IMGrad(), AXES, [1.5, 0.5 + 0.8 * 2.5**0.5]),
        (IMGrad("nashmtl"), AXES, [1.5**0.5, 1.5**0.5]),
        (IMGrad("fairgrad"), AXES, [1.5**0.5, 1.5**0.5]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alignedmtl", {"scale_mode": "max"}),
        ("config", {"preference": [-1.0, 1.0]}),
        ("crmogm", {"alpha": 1.0}),
        ("dbmtl", {"beta": 1.0}),
        ("dualproj", {"ridge": -1.0}),
        ("excessmtl", {"robust_step_size": 0.0}),
        ("graddrop", {"leak": [2.0]}),
        ("gradnorm", {"alpha": -1.0}),
        ("gradvac", {"beta": 2.0}),
        ("imgrad", {"measure": "xy"}),
        ("imgrad", {"base": "mgda"}),
        ("imgrad", {"update_every": 0}),
        ("krum", {"n_byzantine": -1}),
        ("moco", {"variant": "mine"}),
        ("modo", {"gamma": 0.0}),
        ("pcd", {"tau": 1.5}),
        ("pcd", {"primary": -1}),
        ("sdmgrad", {"momentum": 1.0}),
        ("trimmedmean", {"trim": 0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)


def random_rows(n_tasks: int, seed: int) -> np.ndarray:
    return jacobian_of("generic", n_tasks=n_tasks, n_parameters=6, spread=2.0, seed=seed).numpy()


def nearest(rows_: np.ndarray, target: np.ndarray, demanded: np.ndarray) -> np.ndarray:
    """The point nearest to ``target`` with ``J x >= h``, by cvxpy."""
    x = cp.Variable(len(target))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - target)), [rows_ @ x >= demanded])
    problem.solve(solver=cp.CLARABEL)
    return np.asarray(x.value)


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
def test_dualproj_against_cvxpy(n_tasks: int) -> None:
    for seed in range(5):
        matrix = random_rows(n_tasks, seed)
        expected = nearest(matrix, matrix.mean(axis=0), np.zeros(n_tasks))
        found = DualProj()(torch.from_numpy(matrix)).numpy()
        assert found == pytest.approx(expected, abs=1e-5 * np.abs(matrix).max())


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
def test_pcd_against_cvxpy(n_tasks: int) -> None:
    for seed in range(5):
        matrix = random_rows(n_tasks, seed)
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        expected = nearest(unit[1:], unit[0], np.full(n_tasks - 1, 0.3))
        expected *= np.linalg.norm(matrix[0]) / np.linalg.norm(expected)
        found = PCD(tau=0.3)(torch.from_numpy(matrix)).numpy()
        assert found == pytest.approx(expected, abs=1e-4 * np.linalg.norm(matrix[0]))


def test_contradicting_demands_are_reported() -> None:
    assert least_distance(rows([1.0, -1.0], [-1.0, 1.0]).numpy(), np.array([1.0, 1.0])).regularised
    method = PCD(tau=0.5)
    jacobian = rows([1.0, 0.0], [0.0, 1.0], [0.0, -1.0])
    assert method(jacobian).tolist() == [1.0, 0.0]
    assert [event.kind for event in method.pop_events()] == ["regularised_solve"]
    with pytest.raises(InvalidInputError, match="primary task"):
        PCD(primary=3)(jacobian)


def test_pcd_normalises_by_the_average() -> None:
    method = PCD(tau=0.5, beta=0.5)
    method(rows([1.0, 0.0], [0.0, 2.0]))
    # v̂_2 = (4/4 + 16/2) / (3/4) = 12: the normalised norm is 4/√12, and half its square is asked of x.
    found = method(rows([1.0, 0.0], [0.0, 4.0]))
    assert float(found[1] / found[0]) == pytest.approx(0.5 * 4 / 12**0.5)


def test_equal_projections() -> None:
    for seed in range(10):
        matrix = torch.from_numpy(random_rows(4, seed))
        unit = matrix / matrix.norm(dim=1, keepdim=True)
        for method in (IMTLG(), ConFIG()):
            along = unit @ method(matrix)
            assert along.tolist() == pytest.approx([float(along[0])] * 4, rel=1e-6)
        weights = IMTLG().weights(gramian_of(matrix))
        assert float(weights.sum()) == pytest.approx(1.0)
        # The form of the paper.
        differences, directions = matrix[0] - matrix[1:], unit[0] - unit[1:]
        others = matrix[0] @ directions.T @ torch.linalg.inv(differences @ directions.T)
        assert weights[1:].tolist() == pytest.approx(others.tolist(), rel=1e-6)


def test_imtlg_without_a_normalisation() -> None:
    # Coefficients of unit gradients with equal projections, of either sign, and a norm that makes the weights cancel.
    unit = rows([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2 / 3, 2 / 3, 1 / 3])
    first, second, third = torch.linalg.solve(unit @ unit.T, torch.ones(3, dtype=torch.float64)).tolist()
    assert third < 0.0 or first < 0.0
    negative = 2 if third < 0.0 else 0
    rest = sum((first, second, third)) - (first, second, third)[negative]
    norms = torch.ones(3, dtype=torch.float64)
    norms[negative] = -(first, second, third)[negative] / rest
    assert bool(torch.isfinite(IMTLG().weights(gramian_of(unit * norms.unsqueeze(1)))).all())
    assert IMTLG().weights(torch.zeros(2, 2)).tolist() == [0.5, 0.5]


def test_aligned_gradients_are_orthogonal_and_equally_long() -> None:
    matrix = torch.from_numpy(random_rows(4, 1))
    aligned = torch.stack([AlignedMTL(preference=row)(matrix) for row in torch.eye(4).tolist()])
    gramian = gramian_of(aligned)
    smallest = torch.linalg.svdvals(matrix)[-1] ** 2
    assert torch.allclose(gramian, smallest * torch.eye(4, dtype=torch.float64), atol=1e-9 * float(smallest))


def test_krum_needs_enough_tasks() -> None:
    with pytest.raises(InvalidInputError, match="at least 5 tasks"):
        Krum(n_byzantine=1).weights(torch.eye(4))
    with pytest.raises(InvalidInputError, match="at least 3 rows"):
        TrimmedMean()(torch.eye(2))


def test_gradvac_turns_towards_its_target() -> None:
    method = GradVac(beta=1.0)
    method.weights(gramian_of(rows([1.0, 0.0], [0.6, 0.8])))  # cosine 0.6, which is now the target
    found = method(rows([1.0, 0.0], [0.0, 1.0]))
    # Each is turned to a cosine of 0.6 with the other: p_1 = (1, 3/4), p_2 = (3/4, 1).
    assert found.tolist() == pytest.approx([1.75, 1.75])


def test_gradvac_starts_as_pcgrad() -> None:
    jacobian = torch.from_numpy(random_rows(5, 3))
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    ours = GradVac(generator=first, beta=0.0)(jacobian)
    assert ours.tolist() == pytest.approx(PCGrad(generator=second)(jacobian).tolist())


def trunk_problem() -> tuple[mtl_core.Problem, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5))
    model = torch.nn.ModuleDict({"trunk": trunk, "head": torch.nn.Linear(5, 3)})

    def losses(model: Any, x: Tensor) -> Tensor:
        return (model["head"](model["trunk"](x)) - torch.tensor([0.0, 1.0, -1.0])).square().mean(dim=0)

    problem = mtl_core.Problem(model, losses, shared=model["trunk"], tasks=("a", "b", "c"))
    return problem, torch.randn(12, 4), torch.optim.SGD(model.parameters(), lr=0.05)


def test_gradvac_in_groups() -> None:
    problem, batch, optimizer = trunk_problem()
    assert GroupedGradVac.of(problem).sizes == (30, 35)
    assert GroupedGradVac.of(problem, per="parameter").sizes == (24, 6, 30, 5)
    jacobian = torch.randn(3, 65, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = GroupedGradVac(sizes=[65])(jacobian)
    assert whole.tolist() == pytest.approx(GradVac()(jacobian).tolist())
    generator = torch.Generator()
    by_hand = torch.cat([GradVac(generator=generator)(part) for part in jacobian.split([30, 35], dim=1)])
    assert GroupedGradVac(sizes=[30, 35])(jacobian).tolist() == pytest.approx(by_hand.tolist())
    method = GroupedGradVac.of(problem, per="parameter")
    for _ in range(3):
        assert mtl_core.step(problem, batch, optimizer, method).weights is None
    with pytest.raises(InvalidInputError, match="65 columns"):
        method(jacobian[:, :10])
    with pytest.raises(InvalidParameterError, match="`sizes` must"):
        GroupedGradVac(sizes=[])


def test_graddrop_keeps_one_sign() -> None:
    jacobian = torch.randn(4, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = GradDrop()(jacobian)
    positive, negative = jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)
    kept = torch.where(update > 0, positive, negative)
    assert torch.allclose(update, kept)
    mean = torch.stack([GradDrop(generator=torch.Generator().manual_seed(s))(jacobian) for s in range(400)]).mean(0)
    purity = 0.5 * (1 + jacobian.sum(0) / jacobian.abs().sum(0))
    assert float((mean - (purity * positive + (1 - purity) * negative)).abs().max()) < 0.6


def test_excess_risks() -> None:
    method = ExcessMTL(robust_step_size=1.0)
    method(AXES)
    # e = g²/√(g² + g'²): (3, 1) first; then 9/√18 and 16/√17, over 3 and 1.
    update = method(rows([3.0, 0.0], [0.0, 4.0]))
    shares = torch.softmax(torch.tensor([0.5**0.5, 16 / 17**0.5]), dim=0) * 2
    assert update.tolist() == pytest.approx([3 * float(shares[0]), 4 * float(shares[1])])


def test_db_mtl_by_hand() -> None:
    method = DBMTL(beta=0.5)
    first = method(AXES, losses=torch.tensor([3.0, 0.5]))
    # Logarithms' gradients (1, 0) and (0, 2), halved: lengths 1/2 and 1, both made 1.
    assert first.tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(InvalidInputError, match="needs `losses`"):
        DBMTL()(AXES)
    with pytest.raises(InvalidInputError, match="must be positive"):
        DBMTL()(AXES, losses=torch.tensor([1.0, -1.0]))


def test_both_variants_of_moco() -> None:
    paper, libmtl = MoCo(beta=0.5, gamma=0.1), MoCo(beta=0.5, gamma=0.1, variant="libmtl")
    losses = torch.tensor([2.0, 1.0])
    # libmtl: y = (1, 0) and (0, 1/2); w = softmax(1/2 − 0.05, 1/2 − 0.0125).
    shares = torch.softmax(torch.tensor([0.45, 0.4875]), dim=0)
    found = libmtl(AXES, losses=losses)
    assert found.tolist() == pytest.approx([float(shares[0]), 0.5 * float(shares[1])])
    # paper: y = (3/2, 0) and (0, 1/2); w = (1/2 − 0.1125, 1/2 − 0.0125) + 1/16.
    assert paper(AXES).tolist() == pytest.approx([1.5 * 0.45, 0.5 * 0.55])
    with pytest.raises(InvalidInputError, match="needs `losses`"):
        libmtl(AXES)


@pytest.mark.parametrize("method", [MoCo(), MoCo(variant="libmtl"), DBMTL()])
def test_methods_with_losses_step(method: Any) -> None:
    problem, batch, optimizer = trunk_problem()
    before = problem.losses(batch).values.detach().sum()
    for _ in range(20):
        report = mtl_core.step(problem, batch, optimizer, method, max_norm=1.0)
    assert report.weights is None
    assert float(problem.losses(batch).values.detach().sum()) < float(before)


def test_average_of_weights() -> None:
    method = CRMOGM(MGDA(), alpha=0.75)
    assert method.weights(torch.eye(2)).tolist() == [0.5, 0.5]
    second = method.weights(torch.diag(torch.tensor([1.0, 3.0])))
    assert second.tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.75, 0.75 * 0.5 + 0.25 * 0.25])
    with pytest.raises(InvalidInputError, match="`weighting` must"):
        CRMOGM(TrimmedMean())
    nested = CRMOGM(MGDA(normalization="loss"))
    assert nested.takes_losses
    problem, batch, optimizer = trunk_problem()
    report = mtl_core.step(problem, batch, optimizer, nested)
    assert report.weights is not None


class TestGradNorm:
    def test_first_step_by_hand(self) -> None:
        method = GradNorm(lr=0.1, alpha=1.0)
        gramian = torch.diag(torch.tensor([4.0, 1.0]))
        assert method.weights(gramian, losses=torch.tensor([1.0, 2.0])).tolist() == [1.0, 1.0]
        # Both are at their initial losses: norms 2 and 1 are to become 3/2 each; Adam's first step is its rate.
        assert method.weights(gramian, losses=torch.tensor([1.0, 2.0])).tolist() == pytest.approx([0.9, 1.1])

    def test_slow_tasks_gain(self) -> None:
        method = GradNorm(lr=0.01)
        method.weights(torch.eye(2), losses=torch.tensor([1.0, 1.0]))
        for _ in range(20):
            weights = method.weights(torch.eye(2), losses=torch.tensor([1.0, 0.1]))
        assert float(weights[0]) > 1.05 > float(weights[1])
        assert float(weights.sum()) == pytest.approx(2.0)

    def test_only_the_last_shared_layer_is_measured(self) -> None:
        problem, batch, optimizer = trunk_problem()
        seen: list[Tensor] = []

        class Spy(GradNorm):
            def weights(self, gramian: Tensor, *, losses: Tensor | None = None) -> Tensor:
                seen.append(gramian)
                return super().weights(gramian, losses=losses)

        values = problem.losses(batch).values
        expected = mtl_core.collect(values, list(problem.shared)[2:]).gramian
        mtl_core.step(problem, batch, optimizer, Spy())
        assert torch.allclose(seen[0], expected, rtol=1e-5)
        mtl_core.step(problem, batch, optimizer, Spy(layer="trunk.0"))
        with pytest.raises(InvalidParameterError, match="`layer` must"):
            mtl_core.step(problem, batch, optimizer, GradNorm(layer="trunk.9"))

    def test_the_update_is_the_weighted_sum(self) -> None:
        problem, batch, optimizer = trunk_problem()
        method = GradNorm()
        mtl_core.step(problem, batch, optimizer, method)
        assert method.task_weights is not None
        weights = method.task_weights.clone()
        gradients = mtl_core.collect(problem.losses(batch).values, problem.shared)
        expected = gradients.combine(weights)
        report = mtl_core.step(problem, batch, optimizer, method)
        found = torch.cat([p.grad.flatten() for p in problem.shared if p.grad is not None])
        assert torch.allclose(found, expected, atol=1e-6)
        assert report.weights is not None
        assert report.weights.tolist() == pytest.approx(weights.tolist(), rel=1e-6)

    def test_bad_losses(self) -> None:
        with pytest.raises(InvalidInputError, match="`losses` must be given"):
            GradNorm().weights(torch.eye(2))
        with pytest.raises(InvalidInputError, match="must be positive"):
            GradNorm().weights(torch.eye(2), losses=torch.tensor([1.0, -1.0]))


class TestIMGrad:
    @pytest.mark.parametrize("measure", ["pm", "lm", "dc"])
    def test_on_cagrad_it_solves_the_weighed_dual(self, measure: Any) -> None:
        for seed in range(5):
            gramian = gramian_of(torch.from_numpy(random_rows(4, seed)))
            method = IMGrad(CAGrad(c=0.5), measure=measure)
            weights = method.weights(gramian)
            balance = method.last_balance
            assert balance is not None
            if balance > 0.0:
                step = ball_dual(gramian.numpy(), linear=1.5 - balance, norm=0.5 * balance).step
                assert weights.tolist() == pytest.approx((0.25 + 0.5 * step).tolist())

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
    def test_on_fair_methods_it_solves_the_weighed_equation(self, alpha: float) -> None:
        gramian = gramian_of(torch.from_numpy(random_rows(4, 0)))
        method = IMGrad(FairGrad(alpha=alpha))
        weights = method.weights(gramian).numpy()
        assert method.last_balance is not None
        left = (1.0 - method.last_balance) * gramian.numpy() @ weights
        assert left == pytest.approx(method.last_balance * weights ** (-1.0 / alpha), rel=1e-8)
        nash = IMGrad("nashmtl").weights(gramian)
        assert nash.tolist() == pytest.approx(IMGrad("fairgrad").weights(gramian).tolist())
        assert fair_residual(gramian.numpy(), NashMTL().weights(gramian).numpy(), 1.0) < 1e-9

    def test_measures(self) -> None:
        gramian = gramian_of(AXES)
        found = {}
        for measure in ("pm", "lm", "dc"):
            method = IMGrad(measure=measure)
            method.weights(gramian)
            found[measure] = method.last_balance
        assert found["pm"] == pytest.approx(float(plumbline(AXES)))
        assert found["lm"] == pytest.approx(0.5 / 2.5**0.5)
        assert found["dc"] == pytest.approx(1.0 / 3.0)
        against = IMGrad(measure="lm")
        against.weights(gramian_of(rows([3.0, 0.0], [-1.0, 0.1])))
        assert against.last_balance == 0.0

    def test_stationary_points_are_finite(self) -> None:
        for base in ("cagrad", "nashmtl", "fairgrad"):
            for gramian in (rows([1.0, -1.0], [-1.0, 1.0]), rows([4.0, -2.0], [-2.0, 1.0]), torch.zeros(2, 2)):
                assert bool(torch.isfinite(IMGrad(base).weights(gramian)).all())

    def test_released(self) -> None:
        ours = IMGrad(CAGrad(c=0.8, paper_scale=True))(AXES)
        assert ours.tolist() == pytest.approx((IMGrad()(AXES) * 2 / 1.64).tolist())

    def test_reuse(self) -> None:
        method = IMGrad(update_every=2)
        first = method.weights(torch.eye(2))
        assert torch.equal(method.weights(torch.diag(torch.tensor([9.0, 1.0]))), first)
        assert not torch.equal(method.weights(torch.diag(torch.tensor([9.0, 1.0]))), first)
        assert method.update_every == 2


def test_projection_on_the_simplex() -> None:
    for seed in range(20):
        vector = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
        w = cp.Variable(5)
        cp.Problem(cp.Minimize(cp.sum_squares(w - vector.numpy())), [w >= 0, cp.sum(w) == 1]).solve(solver=cp.CLARABEL)
        assert project_simplex(vector).tolist() == pytest.approx(w.value.tolist(), abs=1e-5)
    assert project_simplex(torch.tensor([1e8, 1e8])).tolist() == [0.5, 0.5]


def test_gradvac_learns_nothing_from_a_gradient_that_was_cancelled() -> None:
    first = np.array([0.6, 0.8, 0.3])
    jacobian = torch.from_numpy(np.stack([first, -1.7 * first, np.array([1.0, 2.0, -0.4])]))
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    cosine = float(unit[0] @ unit[2])
    seen = set()
    for seed in range(20):
        method = GradVac(beta=1.0, generator=torch.Generator().manual_seed(seed))
        method(jacobian)
        target = float(method.get_extra_state()["targets"][0, 2])
        # Before it met its opposite, or after, when rounding is all that is left of it.
        assert target == 0.0 or target == pytest.approx(cosine)
        seen.add(target == 0.0)
    assert seen == {True, False}
