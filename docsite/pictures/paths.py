"""The way a method goes on two quadratic losses."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import make
from mtl_benchmarks.figures.drawing import grid, panels
from mtl_benchmarks.figures.palette import INK, MUTED, SUBTLE, method_style
from mtl_core.extension import CountsEpochs, offers

__all__ = ["STARTS", "front", "losses_at", "method_paths", "svg", "walk"]

STARTS = ((-2.6, 1.9), (0.2, 2.6), (2.7, 0.9))
N_STEPS = 80
# Two valleys across each other; the second loss is four times as steep as the first.
# A third loss is there for methods that need three tasks.
_CENTRES = torch.tensor([[-1.0, -1.0], [1.0, -0.6], [0.0, -0.4]])
_CURVATURES = torch.tensor([[[1.0, 0.4], [0.4, 0.5]], [[1.6, -0.8], [-0.8, 3.6]], [[0.5, 0.0], [0.0, 0.5]]])
_FLOOR = 0.05  # above zero, for methods that take logarithms


def losses_at(points: Tensor, n_tasks: int = 2) -> Tensor:
    """The losses ``[..., m]`` at points ``[..., 2]``."""
    away = points.unsqueeze(-2) - _CENTRES[:n_tasks]
    return 0.5 * torch.einsum("...mi,mij,...mj->...m", away, _CURVATURES[:n_tasks], away) + _FLOOR


def front(n: int = 200) -> Tensor:
    """Points ``[n, 2]`` of the Pareto set: where some combination of the gradients is zero."""
    weights = torch.linspace(0.0, 1.0, n)
    mixed = torch.stack([1.0 - weights, weights], dim=1)
    matrices = torch.einsum("nm,mij->nij", mixed, _CURVATURES[:2])
    right = torch.einsum("nm,mij,mj->ni", mixed, _CURVATURES[:2], _CENTRES[:2])
    return torch.linalg.solve(matrices, right)


class _Point(nn.Module):
    def __init__(self, start: tuple[float, float]) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(start))


def walk(method: Any, start: tuple[float, float], *, lr: float, n_steps: int = N_STEPS) -> Tensor:
    """The points ``[n_steps + 1, 2]`` that gradient descent by a method passes, or fewer if it leaves the picture."""
    model = _Point(start)
    tasks = ("first", "second", "third")[: max(2, method.facts.min_tasks)]
    problem = mtl_core.Problem(model, lambda model, _: losses_at(model.at, len(tasks)), shared=model, tasks=tasks)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    # There are no data here, but methods on three batches want rows to divide.
    batch = torch.zeros(3) if method.facts.needs == "batches" else None
    points = [model.at.detach().clone()]
    for step in range(n_steps):
        if offers(method, CountsEpochs):
            method.start_epoch(step // 10)
        mtl_core.step(problem, batch, optimizer, method, max_norm=4.0)
        points.append(model.at.detach().clone())
        if float(points[-1].abs().max()) > 6.0:
            break
    return torch.stack(points)


def svg(figure: Any) -> bytes:
    """A figure as SVG that is the same on every drawing."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mtl", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def method_paths(name: str) -> bytes:
    """The two panels of a method's page, as SVG."""
    torch.manual_seed(0)
    figure, (plane, losses) = panels(2, width=3.7, height=3.1, extra=0.4)
    style = method_style(name)
    across, up = np.meshgrid(np.linspace(-3.2, 3.2, 48), np.linspace(-2.2, 3.2, 48))
    at = losses_at(torch.tensor(np.stack([across, up], axis=-1), dtype=torch.float32)).numpy()
    for k in range(2):
        plane.contour(across, up, at[..., k], levels=[0.2, 0.8, 2.0, 4.0, 8.0], colors=SUBTLE, linewidths=0.8)
    best = front()
    plane.plot(*best.T.tolist(), color=MUTED, linewidth=3.0, solid_capstyle="round")
    losses.plot(*losses_at(best).T.tolist(), color=MUTED, linewidth=3.0, solid_capstyle="round")
    for start in STARTS:
        method = make(name)
        path = walk(method, start, lr=0.1 / method.facts.scale(2))
        plane.plot(*path.T.tolist(), color=style.colour, linewidth=1.6)
        plane.plot(*path[-1].tolist(), marker="o", color=style.colour, markersize=5)
        plane.plot(*start, marker="o", color=INK, markersize=4, fillstyle="none")
        losses.plot(*losses_at(path).T.tolist(), color=style.colour, linewidth=1.6)
        losses.plot(*losses_at(path[-1]).tolist(), marker="o", color=style.colour, markersize=5)
    plane.set(xlim=(-3.2, 3.2), ylim=(-2.2, 3.2), xlabel="first parameter", ylabel="second parameter")
    losses.set(xlim=(0.03, 20), ylim=(0.03, 30), xscale="log", yscale="log", xlabel="first loss", ylabel="second loss")
    grid(losses)
    grid(plane)  # the same letters and lines on both
    plane.grid(False)
    return svg(figure)
