"""The methods with a rule instead of a problem, as their papers print it: in numpy, on whole gradients, task by task.

What the methods do on the Gramian, on all tasks at once or with rescaled rows is done here plainly, so that the two
agree only if both are right. Random orders and draws are given. Stateful rules take several Jacobians ``[m, d]`` in
turn and return the last update ``[d]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]


def length(vector: Array) -> float:
    return float(np.linalg.norm(vector))


def pcgrad(rows: Array, orders: list[list[int]]) -> Array:
    changed = rows.copy()
    for i, order in enumerate(orders):
        for j in order:
            along = float(changed[i] @ rows[j])
            if along < 0.0:
                changed[i] -= along / float(rows[j] @ rows[j]) * rows[j]
    return np.asarray(changed.sum(axis=0))


def gradvac(sequence: list[Array], orders: list[list[list[int]]], beta: float) -> Array:
    targets = np.zeros((len(sequence[0]),) * 2)
    changed = sequence[0]
    for rows, order in zip(sequence, orders, strict=True):
        changed = rows.copy()
        for i, others in enumerate(order):
            for j in others:
                own, other, target = length(changed[i]), length(rows[j]), targets[i, j]
                if own <= 1e-7 * length(rows[i]):  # cancelled: what is left has no direction
                    continue
                cosine = min(1.0, max(-1.0, float(changed[i] @ rows[j]) / own / other))
                if cosine < target:
                    turn = target * np.sqrt(1.0 - cosine**2) - cosine * np.sqrt(1.0 - target**2)
                    changed[i] += own * turn / (other * np.sqrt(1.0 - target**2)) * rows[j]
                targets[i, j] = (1.0 - beta) * target + beta * cosine
    return np.asarray(changed.sum(axis=0))


def graddrop(rows: Array, drawn: Array) -> Array:
    update = np.zeros(rows.shape[1])
    for k, column in enumerate(rows.T):
        purity = 0.5 * (1.0 + column.sum() / np.abs(column).sum())
        update[k] = column[column > 0.0].sum() if purity > drawn[k] else column[column < 0.0].sum()
    return update


def krum(rows: Array, selected: int) -> Array:
    m = len(rows)
    scores = []
    for i in range(m):
        distances = sorted(float((rows[i] - rows[j]) @ (rows[i] - rows[j])) for j in range(m) if j != i)
        scores.append(sum(distances[: max(0, m - 2)]))
    best = sorted(range(m), key=lambda i: scores[i])[:selected]
    return np.asarray(rows[best].mean(axis=0))


def trimmed_mean(rows: Array, trim: int) -> Array:
    return np.array([np.mean(sorted(column)[trim : len(column) - trim]) for column in rows.T])


def excess_mtl(sequence: list[Array], eta: float) -> Array:
    m = len(sequence[0])
    weights, total, first = np.ones(m), np.zeros_like(sequence[0]), np.zeros(m)
    for t, rows in enumerate(sequence):
        total = total + rows**2
        risks = np.array(
            [
                sum(g * g / np.sqrt(s) for g, s in zip(*pair, strict=True) if s > 0.0)
                for pair in zip(rows, total, strict=True)
            ]
        )
        if t == 0:
            first = risks
        else:
            weights = weights * np.exp(eta * risks / first)
            weights *= m / weights.sum()
    return np.asarray(weights @ sequence[-1])


def db_mtl(sequence: list[Array], beta: float) -> Array:
    running = np.zeros_like(sequence[0])
    for rows in sequence:
        running = beta * running + (1.0 - beta) * rows
    norms = [length(row) for row in running]
    return np.asarray(sum(max(norms) * row / norm for row, norm in zip(running, norms, strict=True)))


def project_simplex(vector: Array) -> Array:
    """By the root in the shift, instead of by sorting."""
    shift = brentq(lambda t: np.maximum(vector - t, 0.0).sum() - 1.0, vector.min() - 1.0, vector.max(), xtol=1e-15)
    return np.maximum(vector - shift, 0.0)


def moco(sequence: list[Array], beta: float, gamma: float, sigma: float, rho: float) -> Array:
    m = len(sequence[0])
    tracked, weights = np.zeros_like(sequence[0]), np.full(m, 1.0 / m)
    for t, rows in enumerate(sequence, start=1):
        tracked = tracked - beta / t**sigma * (tracked - rows)
        weights = project_simplex(weights - gamma / t**sigma * ((tracked @ tracked.T) @ weights + rho * weights))
    return np.asarray(tracked.T @ weights)


def sdmgrad(left: Array, right: Array, update: Array, pull: float, steps: int, lr: float, momentum: float) -> Array:
    """On gradients in units of the mean root of ``⟨g_i, g_i'⟩``."""
    m = len(left)
    equal = np.full(m, 1.0 / m)
    unit = np.mean([np.sqrt(max(0.0, float(a @ b))) for a, b in zip(left, right, strict=True)]) ** 2
    weights, velocity = equal, np.zeros(m)
    for _ in range(steps):
        velocity = momentum * velocity + left @ (right.T @ (weights + pull * equal)) / unit
        weights = project_simplex(weights - lr * velocity)
    return np.asarray(update.T @ (weights + pull * equal) / (1.0 + pull))


def modo(left: Array, right: Array, update: Array, gamma: float, rho: float) -> Array:
    weights = np.full(len(left), 1.0 / len(left))
    weights = project_simplex(weights - gamma * (left @ (right.T @ weights) + rho * weights))
    return np.asarray(update.T @ weights)


def grad_norm(sequence: list[Array], losses: list[Array], alpha: float, lr: float) -> Array:
    """With one step of Adam between two Jacobians, which goes by the sign of the slope alone."""
    first, second = sequence
    m = len(first)
    norms = np.array([length(row) for row in first])
    rates = (losses[0] / losses[0]) / np.mean(losses[0] / losses[0])
    slope = np.sign(norms - norms.mean() * rates**alpha) * norms
    # Nothing is left of Adam's constant in units of the mean norm but this.
    slope /= norms.mean()
    weights = np.maximum(1.0 - lr * slope / (np.abs(slope) + 1e-8), 1e-6)
    return np.asarray((weights * m / weights.sum()) @ second)
