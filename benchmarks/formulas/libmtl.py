"""The weighting methods as research code usually computes them, to be timed and measured beside the solvers.

LibMTL cannot be installed beside this repository's other requirements; these are its methods by their published
descriptions, with the engine that it and the papers' code use for each: Frank–Wolfe, SLSQP, ``least_squares``,
sequences of conic programs, inverses and eigen-decompositions of the unscaled Gramian. Each takes a Jacobian ``[m, d]``
and its Gramian, float64 on the CPU, and returns weights ``[m]`` or, where it has none, an update ``[d]``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import least_squares, minimize
from torch import Tensor

from mtl_aggregators import NashMTL

Formula = Callable[[Tensor, Tensor], Tensor]


def mgda(jacobian: Tensor, gramian: Tensor) -> Tensor:
    """Frank–Wolfe from equal weights with exact line search, 100 steps."""
    weights = torch.full_like(gramian[0], 1.0 / len(gramian))
    for _ in range(100):
        image = gramian @ weights
        place = int(image.argmin())
        squared, along, vertex = float(weights @ image), float(image[place]), float(gramian[place, place])
        share = min(1.0, max(0.0, (squared - along) / (squared - 2.0 * along + vertex + 1e-16)))
        if share < 1e-6:
            break
        weights = weights * (1.0 - share)
        weights[place] += share
    return weights


def cagrad(jacobian: Tensor, gramian: Tensor, *, c: float = 0.4) -> Tensor:
    """SLSQP on the dual over the simplex."""
    matrix, m = gramian.numpy(), len(gramian)
    radius = c * np.sqrt(matrix.mean() + 1e-8)

    def dual(w: np.ndarray) -> float:
        return float(w @ matrix.mean(axis=1) + radius * np.sqrt(w @ matrix @ w + 1e-8))

    equal = np.full(m, 1.0 / m)
    found = minimize(dual, equal, bounds=[(0.0, 1.0)] * m, constraints={"type": "eq", "fun": lambda w: 1.0 - w.sum()})
    length = np.sqrt(found.x @ matrix @ found.x + 1e-8)
    return torch.from_numpy(equal + radius / (length + 1e-8) * found.x)


def imgrad(jacobian: Tensor, gramian: Tensor, *, c: float = 0.8) -> Tensor:
    """Frank–Wolfe for the min-norm point, then SLSQP on the augmented dual; its dual weights."""
    matrix, m = gramian.numpy(), len(gramian)
    equal = np.full(m, 1.0 / m)
    closest = mgda(jacobian, gramian).numpy()
    balance = equal @ matrix @ closest / np.sqrt((equal @ matrix @ equal) * (closest @ matrix @ closest) + 1e-16)
    radius = c * np.sqrt(matrix.mean() + 1e-8)

    def dual(w: np.ndarray) -> float:
        return float((1.5 - balance) * (w @ matrix @ equal) + balance * radius * np.sqrt(w @ matrix @ w + 1e-8))

    found = minimize(dual, equal, bounds=[(0.0, 1.0)] * m, constraints={"type": "eq", "fun": lambda w: 1.0 - w.sum()})
    return torch.from_numpy(found.x)


def nash_mtl(jacobian: Tensor, gramian: Tensor) -> Tensor:
    """The convex–concave procedure by cvxpy and Clarabel."""
    return NashMTL(solver="ccp").weights(gramian)


def fairgrad(jacobian: Tensor, gramian: Tensor, *, alpha: float = 2.0) -> Tensor:
    """``least_squares`` on the unscaled equations from equal weights."""
    matrix = gramian.numpy()

    def gap(w: np.ndarray) -> np.ndarray:
        difference: np.ndarray = matrix @ w - np.maximum(w, 1e-300) ** (-1.0 / alpha)
        return difference

    return torch.from_numpy(least_squares(gap, np.full(len(matrix), 1.0 / len(matrix)), bounds=(0.0, np.inf)).x)


def pcgrad(jacobian: Tensor, gramian: Tensor) -> Tensor:
    """Projections of whole gradients, one pair of tasks at a time."""
    changed = jacobian.clone()
    for i, order in enumerate(_orders(len(jacobian))):
        for j in order:
            along = changed[i] @ jacobian[j]
            if along < 0.0:
                changed[i] -= along / (jacobian[j].norm() ** 2 + 1e-8) * jacobian[j]
    return changed.sum(dim=0)


def gradvac(jacobian: Tensor, gramian: Tensor, *, beta: float = 0.01) -> Tensor:
    """Turned whole gradients, one pair of tasks at a time, with targets of zero."""
    changed = jacobian.clone()
    for i, order in enumerate(_orders(len(jacobian))):
        for j in order:
            length, other = changed[i].norm(), jacobian[j].norm()
            cosine = changed[i] @ jacobian[j] / (length * other + 1e-8)
            if cosine < 0.0:
                changed[i] -= length * cosine / (other + 1e-8) * jacobian[j]
    return changed.sum(dim=0)


def _orders(m: int) -> list[list[int]]:
    return [[j for j in torch.randperm(m).tolist() if j != i] for i in range(m)]


def graddrop(jacobian: Tensor, gramian: Tensor) -> Tensor:
    """One draw per coordinate against its sign purity."""
    purity = 0.5 * (1.0 + jacobian.sum(dim=0) / (jacobian.abs().sum(dim=0) + 1e-7))
    drawn = torch.rand_like(purity)
    kept = (purity > drawn) * (jacobian > 0.0) + (purity < drawn) * (jacobian < 0.0)
    return (jacobian * kept).sum(dim=0)


def imtlg(jacobian: Tensor, gramian: Tensor) -> Tensor:
    """The closed form with the first task singled out, by an inverse."""
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    apart, turned = jacobian[0] - jacobian[1:], unit[0] - unit[1:]
    others = jacobian[0] @ turned.T @ torch.linalg.inv(apart @ turned.T)
    return torch.cat([1.0 - others.sum(0, keepdim=True), others])


def aligned_mtl(jacobian: Tensor, gramian: Tensor) -> Tensor:
    """An eigen-decomposition of the Gramian, cut off relative to the largest eigenvalue."""
    values, vectors = torch.linalg.eigh(gramian)
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[kept], vectors[:, kept]
    return (vectors * (values.min() / values).sqrt()) @ vectors.sum(dim=0)


def db_mtl(jacobian: Tensor, gramian: Tensor, *, beta: float = 0.9) -> Tensor:
    """Gradients brought to the greatest length; the first step of the moving average."""
    running = (1.0 - beta) * jacobian
    norms = running.norm(dim=1)
    return (norms.max() / (norms + 1e-8)) @ running


def moco(jacobian: Tensor, gramian: Tensor, *, beta: float = 0.5, gamma: float = 0.1) -> Tensor:
    """Normalised gradients tracked, weights by a softmax; the first step, for losses of 1."""
    tracked = beta * jacobian / (jacobian.norm(dim=1, keepdim=True) + 1e-8)
    weights = torch.full_like(gramian[0], 1.0 / len(gramian))
    return torch.softmax(weights - gamma * (tracked @ tracked.T) @ weights, dim=0) @ tracked


FORMULAS: dict[str, Formula] = {
    "MGDA": mgda,
    "CAGrad": cagrad,
    "IMGrad": imgrad,
    "NashMTL": nash_mtl,
    "FairGrad": fairgrad,
    "PCGrad": pcgrad,
    "GradVac": gradvac,
    "GradDrop": graddrop,
    "IMTLG": imtlg,
    "AlignedMTL": aligned_mtl,
    "DBMTL": db_mtl,
    "MoCo": moco,
}
