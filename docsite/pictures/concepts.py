"""One picture for each concept, from the methods' own updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mtl_core
from docsite.pictures.paths import STARTS, front, losses_at, walk
from mtl_aggregators import FairGrad, make, stationarity_gap
from mtl_benchmarks.figures.drawing import grid, key_below, panels
from mtl_benchmarks.figures.palette import INK, MUTED, method_style, task_colour

__all__ = ["CONCEPTS"]

_LABELS = {
    "ls": "LS",
    "mgda": "MGDA",
    "cagrad": "CAGrad",
    "nashmtl": "Nash-MTL",
    "fairgrad": "FairGrad, α = 2",
    "imtlg": "IMTL-G",
    "upgrad": "UPGrad",
    "pcgrad": "PCGrad",
    "dualproj": "DualProj",
}


def _update(name: str, jacobian: Tensor) -> Tensor:
    """A method's update of a Jacobian; LS, which sees no gradients, is their sum."""
    if name == "ls":
        return jacobian.sum(0)
    torch.manual_seed(0)
    method = make(name, alpha=2.0) if name == "fairgrad" else make(name)
    update: Tensor = method(jacobian)
    return update


def _line(axes: Any, name: str, across: Any, up: Any) -> None:
    style = method_style(name)
    axes.plot(across, up, color=style.colour, linestyle=style.dash, label=_LABELS[name], linewidth=1.6)


def conflict() -> Any:
    """Two gradients and what methods make of them, with and without conflict."""
    figure, axes = panels(2, width=3.9, height=2.6, extra=0.4)
    angles = {"no conflict: every method agrees with both": 50.0, "conflict: the sum goes against the short one": 130.0}
    for panel, (title, angle) in zip(axes, angles.items(), strict=True):
        turned = math.radians(angle)
        jacobian = torch.tensor([[1.0, 0.0], [0.45 * math.cos(turned), 0.45 * math.sin(turned)]], dtype=torch.float64)
        for k, gradient in enumerate(jacobian.tolist()):
            panel.annotate(
                "", gradient, (0, 0), arrowprops={"arrowstyle": "-|>", "color": task_colour(k), "linewidth": 2.2}
            )
            panel.text(gradient[0], gradient[1] + 0.06, f"$g_{k + 1}$", color=task_colour(k), fontsize=11, ha="center")
        for name in ("ls", "pcgrad", "mgda", "nashmtl"):
            update = _update(name, jacobian)
            end = 0.8 * update / update.norm()
            _line(panel, name, [0.0, float(end[0])], [0.0, float(end[1])])
        low = jacobian[1] / jacobian[1].norm()
        across = torch.stack([torch.tensor([low[1], -low[0]]), torch.tensor([-low[1], low[0]])]) * 1.2
        panel.plot(*across.T.tolist(), color=MUTED, linewidth=0.8, linestyle=":")
        panel.set(xlim=(-0.6, 1.15), ylim=(-0.35, 1.0), aspect="equal", xticks=[], yticks=[])
        panel.set_title(title, fontsize=9)
        panel.spines[:].set_visible(False)
    key_below(figure, axes)
    return figure


def imbalance() -> Any:
    """How much an update agrees with the short and with the long gradient as they grow apart."""
    figure, axes = panels(2, width=3.7, height=2.9, extra=0.8)
    ratios = torch.logspace(0, 3, 40, dtype=torch.float64).tolist()
    angle = math.radians(110.0)
    for name in ("ls", "mgda", "cagrad", "nashmtl", "upgrad", "imtlg"):
        rows = []
        for ratio in ratios:
            jacobian = torch.tensor([[ratio, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
            update = _update(name, jacobian)
            rows.append((jacobian @ update / (jacobian.norm(dim=1) * update.norm())).tolist())
        for panel, cosine in zip(axes, list(zip(*rows, strict=True))[::-1], strict=True):
            _line(panel, name, ratios, cosine)
    for panel, title in zip(axes, ("with the short gradient", "with the long gradient"), strict=True):
        panel.axhline(0.0, color=MUTED, linewidth=0.8)
        panel.set(xscale="log", ylim=(-0.5, 1.05), xlabel="long over short", title=title)
        grid(panel)
    axes[0].set_ylabel("cosine of the update")
    key_below(figure, axes)
    return figure


def pareto() -> Any:
    """Two ways to the Pareto set, and the distance from it by the stationarity gap."""
    figure, (plane, gap) = panels(2, width=3.7, height=2.9, extra=0.8)
    best = losses_at(front())
    plane.plot(*best.T.tolist(), color=MUTED, linewidth=3.0)
    for name, start in (("ls", STARTS[0]), ("mgda", STARTS[0])):
        method = make(name)
        points = walk(method, start, lr=0.08 / method.facts.scale(2))
        style = method_style(name)
        plane.plot(
            *losses_at(points).T.tolist(), color=style.colour, linestyle=style.dash, label=_LABELS[name], linewidth=1.6
        )
        plane.plot(*losses_at(points[-1]).tolist(), marker="o", color=style.colour)
        gaps = []
        for point in points:
            at = point.clone().requires_grad_()
            gradients = mtl_core.collect(list(losses_at(at)), [at])
            gaps.append(float(stationarity_gap(gradients.gramian)))
        gap.plot(gaps, color=style.colour, linestyle=style.dash, linewidth=1.6)
    plane.set(xscale="log", yscale="log", xlabel="first loss", ylabel="second loss")
    plane.set_title("the front, and two ways to it", fontsize=9)
    gap.set(yscale="log", xlabel="step", ylim=(1e-3, None))
    gap.set_title("stationarity gap: 0 on the front", fontsize=9)
    for panel in (plane, gap):
        grid(panel)
    key_below(figure, [plane])
    return figure


def heads() -> Any:
    """The length of each head's gradient when it follows its own loss, and its loss times the method's weight."""
    figure, (panel,) = panels(1, width=6.4, height=2.6, extra=0.6)
    lengths, tasks = {}, ("metres", "millimetres", "class")
    for kind in ("unit", "weighted"):
        torch.manual_seed(0)
        model = nn.ModuleDict(
            {"trunk": nn.Sequential(nn.Linear(6, 32), nn.Tanh())} | {t: nn.Linear(32, 1) for t in tasks}
        )

        def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
            z = model["trunk"](x)
            wanted = {"metres": x[:, :1], "millimetres": 30.0 * x[:, 1:2], "class": x[:, 2:3].sign()}
            return {task: (model[task](z) - wanted[task]).square().mean() for task in tasks}

        problem = mtl_core.Problem(model, losses, shared="trunk", tasks=tasks)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        seen: list[float] = []

        def clip(parameters: list[Tensor], model: Any = model, seen: list[float] = seen) -> None:
            seen[:] = [math.hypot(*(float(p.grad.norm()) for p in model[task].parameters())) for task in tasks]

        mtl_core.step(problem, torch.randn(64, 6), optimizer, FairGrad(), heads=kind, clip=clip)  # type: ignore[arg-type]
        lengths[kind] = list(seen)
    for k, (kind, values) in enumerate(lengths.items()):
        across = [place + 0.2 * (2 * k - 1) for place in range(len(tasks))]
        panel.bar(across, values, width=0.36, color=(INK, method_style("fairgrad").colour)[k], label=f'heads="{kind}"')
    panel.set_xticks(range(len(tasks)), tasks)
    panel.set(yscale="log", ylabel="length of the head's gradient")
    panel.yaxis.set_minor_formatter("")
    grid(panel)
    panel.legend(frameon=False, fontsize=8)
    return figure


def scale() -> Any:
    """The update's length for m equal unit gradients."""
    figure, (panel,) = panels(1, width=6.4, height=3.2, extra=0.7)
    counts = [1, 2, 4, 8, 16, 32, 64]
    for name in ("ls", "pcgrad", "cagrad", "nashmtl", "fairgrad", "mgda", "upgrad"):
        unit = torch.eye(1, 3, dtype=torch.float64)
        _line(panel, name, counts, [float(_update(name, unit.expand(m, 3)).norm()) for m in counts])
    panel.set(xscale="log", yscale="log", xlabel="number of tasks, all with the same gradient of length 1")
    panel.set_ylabel("length of the update")
    grid(panel)
    key_below(figure, [panel])
    return figure


def degree() -> Any:
    """The update's length when all gradients are multiplied by s."""
    figure, (panel,) = panels(1, width=6.4, height=3.2, extra=0.7)
    factors = torch.logspace(-3, 3, 13, dtype=torch.float64).tolist()
    jacobian = torch.tensor([[1.0, 0.0, 0.4], [-0.3, 1.0, 0.0], [0.0, -0.4, 1.0]], dtype=torch.float64)
    for name in ("ls", "mgda", "cagrad", "upgrad", "nashmtl", "fairgrad"):
        one = _update(name, jacobian).norm()
        _line(panel, name, factors, [float(_update(name, s * jacobian).norm() / one) for s in factors])
    panel.set(xscale="log", yscale="log", xlabel="factor s on all gradients", ylabel="factor on the update")
    grid(panel)
    key_below(figure, [panel])
    return figure


CONCEPTS: dict[str, Callable[[], Any]] = {
    "conflict": conflict,
    "imbalance": imbalance,
    "pareto": pareto,
    "heads": heads,
    "scale": scale,
    "degree": degree,
}
