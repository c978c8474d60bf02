"""Worst disagreement of the weighting methods with independent oracles over random structured Jacobians.

Run it by ``nox -s bench -- accuracy``, or ``python benchmarks/accuracy.py [--count N] [--seed N] [--only METHOD …]``.
The oracles see the Jacobian, never the Gramian: cvxpy with Clarabel for what is an optimisation problem, otherwise the
rule of the paper in numpy (``formulas/rules.py``). Each case has 2, 3 or 5 tasks, row norms up to a hundredfold apart
and one of the structures of ``mtl_core.testing``, zero rows left out. Two columns per method: how much worse its
objective is than the oracle's (negative: better), and how far the updates lie apart; both relative to the gradients
that they are made of. The oracles stop at about 1e-8 of the objective, which leaves 1e-4 of an update where the minimum
is flat; and CAGrad's update is not unique at Pareto-stationary points, where ours is the shortest. Methods with a state
are compared at their second step, after gradients that are others for every task.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections import defaultdict
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cvxpy as cp
import numpy as np
import torch
from formulas import rules

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
    MoDo,
    NashMTL,
    PCGrad,
    SDMGrad,
    TrimmedMean,
    UPGrad,
)
from mtl_aggregators.imgrad import balance_of
from mtl_aggregators.solvers import project_rows
from mtl_core import SolverError
from mtl_core.testing import STRUCTURES, jacobian_of

C, TAU = 0.4, 0.3
Case = tuple[float, float]


def solve(problem: cp.Problem) -> None:
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)


def length(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def mgda(rows: np.ndarray) -> Case:
    w = cp.Variable(len(rows), nonneg=True)
    solve(cp.Problem(cp.Minimize(cp.sum_squares(rows.T @ w)), [cp.sum(w) == 1]))
    ours, theirs = MGDA()(torch.from_numpy(rows)).numpy(), rows.T @ (w.value / w.value.sum())
    return length(ours) - length(theirs), length(ours - theirs)


def cagrad(rows: np.ndarray) -> Case:
    mean = rows.mean(axis=0)
    d, worst = cp.Variable(rows.shape[1]), cp.Variable()
    solve(cp.Problem(cp.Maximize(worst), [rows @ d >= worst, cp.norm(d - mean) <= C * length(mean)]))
    ours = CAGrad(c=C)(torch.from_numpy(rows)).numpy()
    return float(worst.value - (rows @ ours).min()), length(ours - d.value)


def imgrad(rows: np.ndarray) -> Case:
    mean = rows.mean(axis=0)
    balance = balance_of(rows @ rows.T, "pm")
    first, second = 1.5 - balance, balance * 0.8 * length(mean)
    d, worst = cp.Variable(rows.shape[1]), cp.Variable()
    solve(cp.Problem(cp.Maximize(worst), [rows @ d >= worst, cp.norm(d - first * mean) <= second]))
    method = IMGrad(CAGrad(c=0.8))
    method.weights(torch.from_numpy(rows @ rows.T))
    w = method.base.last_solution.value
    ours = first * (rows.T @ w) @ mean + second * length(rows.T @ w)
    return float(ours - worst.value), float("nan")


def fair(rows: np.ndarray, alpha: float, method: NashMTL | FairGrad) -> Case:
    power = 1.0 - 1.0 / alpha
    ours = method.weights(torch.from_numpy(rows @ rows.T)).numpy()
    if method.last_solution is None or method.last_solution.regularised:
        return float("nan"), float("nan")
    w = cp.Variable(len(rows), pos=True)
    utility = cp.sum(cp.log(w)) if alpha == 1.0 else cp.sum(cp.power(w, power)) / power
    solve(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(rows.T @ w) - utility)))

    def value(weights: np.ndarray) -> float:
        gain = np.log(weights).sum() if alpha == 1.0 else (weights**power).sum() / power
        return float(0.5 * length(rows.T @ weights) ** 2 - gain)

    size = max(1.0, abs(value(ours)))
    return (value(ours) - value(w.value)) / size, length(rows.T @ (ours - w.value)) / length(rows.T @ ours)


def nearest(rows: np.ndarray, target: np.ndarray, demanded: np.ndarray) -> np.ndarray:
    x = cp.Variable(len(target))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    solve(cp.Problem(cp.Minimize(cp.sum_squares(x - target)), [(rows / norms) @ x >= demanded / norms[:, 0]]))
    return np.asarray(x.value)


def upgrad(rows: np.ndarray) -> Case:
    theirs = np.stack([nearest(rows, row, np.zeros(len(rows))) for row in rows])
    ours = project_rows(rows @ rows.T).value @ rows
    excess = np.linalg.norm(ours - rows, axis=1) - np.linalg.norm(theirs - rows, axis=1)
    update = UPGrad()(torch.from_numpy(rows)).numpy()
    return float(excess.max()), length(update - theirs.mean(axis=0))


def dualproj(rows: np.ndarray) -> Case:
    mean = rows.mean(axis=0)
    ours, theirs = DualProj()(torch.from_numpy(rows)).numpy(), nearest(rows, mean, np.zeros(len(rows)))
    return length(ours - mean) - length(theirs - mean), length(ours - theirs)


def pcd(rows: np.ndarray) -> Case:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    method = PCD(tau=TAU)
    ours = method(torch.from_numpy(rows)).numpy()
    if method.last_solution is None or method.last_solution.regularised:
        return float("nan"), float("nan")
    theirs = nearest(unit[1:], unit[0], np.full(len(rows) - 1, TAU))
    return float("nan"), length(ours - theirs / length(theirs) * length(rows[0]))


def imtlg(rows: np.ndarray) -> Case:
    norms = np.linalg.norm(rows, axis=1)
    shares = np.linalg.solve(rows @ rows.T, norms)
    shares /= shares.sum()
    ours = IMTLG()(torch.from_numpy(rows)).numpy()
    return float("nan"), length(ours - rows.T @ shares) / max(1.0, float(np.abs(shares).sum()))


def config(rows: np.ndarray) -> Case:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction = np.linalg.pinv(unit) @ np.ones(len(rows))
    direction /= length(direction)
    return float("nan"), length(ConFIG()(torch.from_numpy(rows)).numpy() - (rows @ direction).sum() * direction)


def aligned(rows: np.ndarray) -> Case:
    left, sizes, right = np.linalg.svd(rows, full_matrices=False)
    theirs = sizes.min() * np.ones(len(rows)) @ left @ right
    return float("nan"), length(AlignedMTL()(torch.from_numpy(rows)).numpy() - theirs)


def unit_mgda(rows: np.ndarray) -> Case:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    w = cp.Variable(len(rows), nonneg=True)
    solve(cp.Problem(cp.Minimize(cp.sum_squares(unit.T @ w)), [cp.sum(w) == 1]))
    ours = MGDA(normalization="l2").weights(torch.from_numpy(rows @ rows.T)).numpy()
    return length(unit.T @ ours) - length(unit.T @ w.value), length(unit.T @ (ours - w.value))


def augmented(rows: np.ndarray, alpha: float, base: str) -> Case:
    """IMGrad on Nash-MTL and FairGrad: how far the augmented equations are from holding."""
    method = IMGrad(NashMTL() if base == "nashmtl" else FairGrad(alpha=alpha))
    weights = method.weights(torch.from_numpy(rows @ rows.T)).numpy()
    balance = method.last_balance
    if balance is None or balance in (0.0, 1.0) or balance > 0.99 or method.last_solution.regularised:  # type: ignore[union-attr]
        return float("nan"), float("nan")
    left, right = (1.0 - balance) * (rows @ (rows.T @ weights)), balance * weights ** (-1.0 / alpha)
    return float("nan"), float(np.abs(left / right - 1.0).max())


def others(rows: np.ndarray) -> np.ndarray:
    """Gradients for a step before: each row turned by a rotation and scaled by its own factor."""
    rotation, _ = np.linalg.qr(np.random.default_rng(len(rows)).normal(size=(rows.shape[1],) * 2))
    factors = np.linspace(0.5, 2.0, len(rows))[:, None]
    turned: np.ndarray = factors * rows @ rotation
    return turned


def orders(m: int, generator: torch.Generator) -> list[list[int]]:
    """The random orders that PCGrad and GradVac draw."""
    drawn = torch.rand(m, m - 1, generator=generator, dtype=torch.float64).numpy().argsort(axis=1)
    return [[int(j) + (j >= i) for j in row] for i, row in enumerate(drawn)]


def apart(ours: torch.Tensor, theirs: np.ndarray) -> Case:
    return float("nan"), length(ours.numpy() - theirs) / max(1.0, length(theirs))


def in_turn(method: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    method(torch.from_numpy(others(rows)))
    return method(torch.from_numpy(rows))


def pcgrad(rows: np.ndarray) -> Case:
    if len(rows) == 1:
        return float("nan"), float("nan")
    ours = PCGrad(generator=torch.Generator().manual_seed(1))(torch.from_numpy(rows))
    return apart(ours, rules.pcgrad(rows, orders(len(rows), torch.Generator().manual_seed(1))))


def gradvac(rows: np.ndarray) -> Case:
    if len(rows) == 1:
        return float("nan"), float("nan")
    ours = in_turn(GradVac(beta=0.5, generator=torch.Generator().manual_seed(1)), rows)
    known = torch.Generator().manual_seed(1)
    visited = [orders(len(rows), known), orders(len(rows), known)]
    return apart(ours, rules.gradvac([others(rows), rows], visited, 0.5))


def grouped(rows: np.ndarray) -> Case:
    if len(rows) == 1:
        return float("nan"), float("nan")
    first = rows.shape[1] // 2
    parts = [rows[:, :first], rows[:, first:]]
    if min(np.linalg.norm(part, axis=1).min() for part in parts) == 0.0:
        return float("nan"), float("nan")
    sizes = [part.shape[1] for part in parts]
    ours = GroupedGradVac(sizes=sizes, generator=torch.Generator().manual_seed(1))(torch.from_numpy(rows))
    known = torch.Generator().manual_seed(1)
    theirs = [rules.gradvac([part], [orders(len(rows), known)], 0.01) for part in parts]
    return apart(ours, np.concatenate(theirs))


def graddrop(rows: np.ndarray) -> Case:
    if not np.abs(rows).sum(axis=0).all():
        return float("nan"), float("nan")
    drawn = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(1)).double().numpy()
    ours = GradDrop(generator=torch.Generator().manual_seed(1))(torch.from_numpy(rows))
    return apart(ours, rules.graddrop(rows, drawn))


def krum(rows: np.ndarray) -> Case:
    if len(rows) < 4:  # with fewer than two neighbours every score is the same
        return float("nan"), float("nan")
    return apart(Krum(n_selected=1)(torch.from_numpy(rows)), rules.krum(rows, 1))


def trimmed_mean(rows: np.ndarray) -> Case:
    if len(rows) < 3:
        return float("nan"), float("nan")
    return apart(TrimmedMean(trim=1)(torch.from_numpy(rows)), rules.trimmed_mean(rows, 1))


def sdmgrad(rows: np.ndarray) -> Case:
    right, third = rows + 0.3 * others(rows), others(others(rows))
    if np.einsum("ij,ij->i", rows, right).max() <= 0.0:
        return float("nan"), float("nan")
    method = SDMGrad(lambda_=0.3, n_iters=20, lr=0.1, momentum=0.5)
    weights = method.weigh(torch.from_numpy(rows @ right.T)).numpy()
    theirs = rules.sdmgrad(rows, right, third, 0.3, 20, 0.1, 0.5)
    return apart(torch.from_numpy(third.T @ weights), theirs)


def modo(rows: np.ndarray) -> Case:
    right, third = others(rows), others(others(rows))
    weights = MoDo(gamma=0.1, rho=0.1).weigh(torch.from_numpy(rows @ right.T))
    return apart(torch.from_numpy(third.T @ weights.numpy()), rules.modo(rows, right, third, 0.1, 0.1))


def gradnorm(rows: np.ndarray) -> Case:
    before = others(rows)
    losses = np.linspace(1.0, 2.0, len(rows))
    method = GradNorm(lr=0.1)
    given = torch.from_numpy(losses)
    method.weights(torch.from_numpy(before @ before.T), losses=given)
    weights = method.weights(torch.from_numpy(rows @ rows.T), losses=given).numpy()
    norms = np.linalg.norm(before, axis=1)
    if np.abs(norms - norms.mean()).min() < 1e-9:  # the sign of a slope of zero is a matter of rounding
        return float("nan"), float("nan")
    theirs = rules.grad_norm([before, rows], [losses, losses], 1.5, 0.1)
    return apart(torch.from_numpy(weights @ rows), theirs)


def crmogm(rows: np.ndarray) -> Case:
    gramians = [torch.from_numpy(g @ g.T) for g in (others(rows), rows)]
    first, second = (MGDA().weights(gramian) for gramian in gramians)
    method = CRMOGM(MGDA(), alpha=0.9)
    ours = [method.weights(gramian) for gramian in gramians][-1]
    return apart(ours, (0.9 * first + 0.1 * second).numpy())


ORACLES: dict[str, Callable[[np.ndarray], Case]] = {
    "MGDA": mgda,
    "MGDA l2": unit_mgda,
    "CAGrad": cagrad,
    "IMGrad": imgrad,
    "IMGrad nash": lambda rows: augmented(rows, 1.0, "nashmtl"),
    "IMGrad fair 2": lambda rows: augmented(rows, 2.0, "fairgrad"),
    "NashMTL": lambda rows: fair(rows, 1.0, NashMTL()),
    "FairGrad 1/2": lambda rows: fair(rows, 0.5, FairGrad(alpha=0.5)),
    "FairGrad 2": lambda rows: fair(rows, 2.0, FairGrad(alpha=2.0)),
    "UPGrad": upgrad,
    "DualProj": dualproj,
    "PCD": pcd,
    "SDMGrad": sdmgrad,
    "IMTLG": imtlg,
    "ConFIG": config,
    "AlignedMTL": aligned,
    "PCGrad": pcgrad,
    "GradVac": gradvac,
    "GroupedGradVac": grouped,
    "GradDrop": graddrop,
    "Krum": krum,
    "TrimmedMean": trimmed_mean,
    "GradNorm": gradnorm,
    "MoDo": modo,
    "MoCo": lambda rows: apart(in_turn(MoCo(), rows), rules.moco([others(rows), rows], 0.5, 0.1, 0.5, 0.0)),
    "DBMTL": lambda rows: apart(in_turn(DBMTL(log_losses=False), rows), rules.db_mtl([others(rows), rows], 0.9)),
    "ExcessMTL": lambda rows: apart(in_turn(ExcessMTL(), rows), rules.excess_mtl([others(rows), rows], 1.0)),
    "CRMOGM": crmogm,
}
INDEPENDENT = ("IMTLG", "ConFIG", "AlignedMTL")
"""Methods whose plain formula needs linearly independent gradients."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="Jacobians")
    parser.add_argument("--only", nargs="+", choices=tuple(ORACLES), default=tuple(ORACLES), help="methods")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(options.seed)
    found: dict[str, list[Case]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    for case in range(options.count):
        structure = STRUCTURES[case % len(STRUCTURES)]
        m = int(rng.choice((2, 3, 5)))
        spread = float(rng.uniform(0.0, 2.0))
        rows = jacobian_of(structure, n_tasks=m, n_parameters=m + 3, spread=spread, seed=case).numpy()
        rows = rows[np.linalg.norm(rows, axis=1) > 0.0]
        rows = rows / np.linalg.norm(rows, axis=1).max()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        dependent = np.linalg.svd(unit, compute_uv=False).min() < 1e-4
        for name in options.only:
            oracle = ORACLES[name]
            if name in INDEPENDENT and dependent:
                skipped[name] += 1
                continue
            try:
                found[name].append(oracle(rows))
            except SolverError:
                raise
            except (cp.error.SolverError, TypeError):
                skipped[name] += 1  # the oracle found no solution
    print(f"{options.count} Jacobians, structures {', '.join(STRUCTURES)}")
    print(f"{'':16s}{'cases':>7s}{'objective: worst':>18s}{'update: median':>16s}{'worst':>9s}")
    for name in options.only:
        values = np.array(found[name])
        kept = values[~np.isnan(values).all(axis=1)]
        cells = [np.nanmax(kept[:, 0]) if not np.isnan(kept[:, 0]).all() else np.nan]
        if not np.isnan(kept[:, 1]).all():
            cells += [np.nanmedian(kept[:, 1]), np.nanmax(kept[:, 1])]
        else:
            cells += [np.nan, np.nan]
        print(f"{name:16s}{len(kept):7d}{cells[0]:18.0e}{cells[1]:16.0e}{cells[2]:9.0e}")


if __name__ == "__main__":
    main()
