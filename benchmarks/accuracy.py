"""Worst disagreement of the weighting methods with independent oracles over random structured Jacobians.

Run it by ``nox -s bench -- accuracy``, or ``python benchmarks/accuracy.py [--cases N] [--seed N]``. The oracles see the
Jacobian, never the Gramian: cvxpy with Clarabel for what is an optimisation problem, otherwise the formula of the paper
in numpy. Each case has 2, 3 or 5 tasks, row norms up to a hundredfold apart and one of the structures of
``mtl_core.testing``. Two columns per method: how much worse its objective is than the oracle's (negative: better), and
how far the updates lie apart; both relative to the gradients that they are made of. The oracles stop at about 1e-8 of
the objective, which leaves 1e-4 of an update where the minimum is flat; and CAGrad's update is not unique at
Pareto-stationary points, where ours is the shortest.
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

from mtl_aggregators import IMTLG, MGDA, PCD, AlignedMTL, CAGrad, ConFIG, DualProj, FairGrad, IMGrad, NashMTL, UPGrad
from mtl_aggregators.imgrad import balance_of
from mtl_aggregators.solvers import project_rows
from mtl_core.errors import SolverError
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


def fair(rows: np.ndarray, alpha: float) -> Case:
    method = NashMTL() if alpha == 1.0 else FairGrad(alpha=alpha)
    ours = method.weights(torch.from_numpy(rows @ rows.T)).numpy()
    if method.last_solution is None or method.last_solution.regularised:
        return float("nan"), float("nan")
    w = cp.Variable(len(rows), pos=True)
    utility = cp.sum(cp.log(w)) if alpha == 1.0 else 2.0 * cp.sum(cp.sqrt(w))
    solve(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(rows.T @ w) - utility)))

    def value(weights: np.ndarray) -> float:
        gain = np.log(weights).sum() if alpha == 1.0 else 2.0 * np.sqrt(weights).sum()
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


ORACLES: dict[str, Callable[[np.ndarray], Case]] = {
    "MGDA": mgda,
    "CAGrad": cagrad,
    "IMGrad": imgrad,
    "NashMTL": lambda rows: fair(rows, 1.0),
    "FairGrad": lambda rows: fair(rows, 2.0),
    "UPGrad": upgrad,
    "DualProj": dualproj,
    "PCD": pcd,
    "IMTLG": imtlg,
    "ConFIG": config,
    "AlignedMTL": aligned,
}
INDEPENDENT = ("IMTLG", "ConFIG", "AlignedMTL")
"""Methods whose plain formula needs linearly independent gradients."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(options.seed)
    found: dict[str, list[Case]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    for case in range(options.cases):
        structure = STRUCTURES[case % len(STRUCTURES)]
        m = int(rng.choice((2, 3, 5)))
        spread = float(rng.uniform(0.0, 2.0))
        rows = jacobian_of(structure, n_tasks=m, n_parameters=m + 3, spread=spread, seed=case).numpy()
        rows = rows[np.linalg.norm(rows, axis=1) > 0.0]
        rows = rows / np.linalg.norm(rows, axis=1).max()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        dependent = np.linalg.svd(unit, compute_uv=False).min() < 1e-4
        for name, oracle in ORACLES.items():
            if name in INDEPENDENT and dependent:
                skipped[name] += 1
                continue
            try:
                found[name].append(oracle(rows))
            except SolverError:
                raise
            except (cp.error.SolverError, TypeError):
                skipped[name] += 1  # the oracle found no solution
    print(f"{options.cases} Jacobians, structures {', '.join(STRUCTURES)}")
    print(f"{'':12s}{'cases':>7s}{'objective: worst':>18s}{'update: median':>16s}{'worst':>9s}")
    for name in ORACLES:
        values = np.array(found[name])
        kept = values[~np.isnan(values).all(axis=1)]
        cells = [np.nanmax(kept[:, 0]) if not np.isnan(kept[:, 0]).all() else np.nan]
        if not np.isnan(kept[:, 1]).all():
            cells += [np.nanmedian(kept[:, 1]), np.nanmax(kept[:, 1])]
        else:
            cells += [np.nan, np.nan]
        print(f"{name:12s}{len(kept):7d}{cells[0]:18.0e}{cells[1]:16.0e}{cells[2]:9.0e}")


if __name__ == "__main__":
    main()
