"""Figures of the COST paper about conflict and teleports.

Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_benchmarks.figures.experiments import conflict_scatter, label_styles, share_lines
from mtl_benchmarks.figures.palette import Style
from mtl_benchmarks.paper_figures.measures import conflict_points, epoch_shares, kept_teleports
from mtl_benchmarks.paper_figures.setting import Made, Setting

__all__ = ["conflict_by_epoch", "loss_against_conflict"]


def loss_against_conflict(setting: Setting) -> Made:
    """Each method alone, a dot per recorded step; and the same with teleports, an arrow per kept one."""
    planned = {
        (name, moved): setting.config(method, setting.teleport if moved else None, seed=setting.seeds[0])
        for name, method in setting.labels.items()
        for moved in (False, True)
    }
    runs = dict(zip(planned, setting.train(list(planned.values())), strict=True))
    rows: list[tuple[Any, ...]] = []
    points: dict[str, list[tuple[float, float]]] = {}
    moves: dict[str, list[tuple[float, float, float, float]]] = {}
    said = []
    for name in setting.labels:
        found = conflict_points(runs[name, False])
        rows += [(name, "step", step, loss, cosine, "", "") for step, loss, cosine in found]
        points[name] = [(loss, cosine) for _, loss, cosine in found]
        moves[name] = []
        for _, event in kept_teleports([runs[name, True]]):
            weakest = _weakest(event)
            before = (_mean(event["losses_before"]), event["cosines_before"][weakest])
            after = (_mean(event["losses_after"]), event["cosines_after"][weakest])
            moves[name].append((*before, *after))
            rows.append((name, "teleport", event["step"], *before, *after))
        share = statistics.fmean(cosine < 0 for _, cosine in points[name])
        said.append(f"{name} in conflict at {100 * share:.1f} % of {len(found)} steps, {len(moves[name])} teleports")
    header = ("method", "kind", "step", "mean loss", "cosine of the weakest task", "mean loss after", "cosine after")
    return Made(conflict_scatter(points, moves), header, rows, "; ".join(said))


def _weakest(event: Mapping[str, Any]) -> int:
    """Place of the task whose gradient was smallest before."""
    norms = event["norms_before"]
    return min((k for k, norm in enumerate(norms) if norm), key=lambda k: float(norms[k]), default=0)


def _mean(values: Sequence[float | None]) -> float:
    return statistics.fmean(value for value in values if value is not None)


_KINDS = {"any_mean": "some task", "dominated": "the weakest task", "majority": "half of the tasks"}
"""Kind of conflict with the mean gradient → in words."""


def conflict_by_epoch(setting: Setting) -> Made:
    """Shares of each epoch's steps with conflict, of a benchmark with few tasks and one with many; means over seeds."""
    assert setting.many is not None
    (method, *_) = setting.methods
    cases = (setting.case, setting.many)
    # The one of many tasks first: it is the one that may lack files or a package.
    planned = [setting.config(method, seed=seed, case=case) for case in reversed(cases) for seed in setting.seeds]
    runs = setting.train(planned)
    lines: dict[str, list[tuple[int, float]]] = {}
    styles: list[Style] = []
    rows: list[tuple[Any, ...]] = []
    said = []
    dashes = {"any_mean": "-", "dominated": (0, (1.5, 1.5)), "majority": (0, (6, 2))}
    for case, look in zip(cases, label_styles(("ls", "fairgrad")), strict=True):
        own = [run for run in runs if run.config.benchmark.name == case.benchmark.name]
        name = f"{case.benchmark.name} ({len(own[0].config.tasks)} tasks)"
        for kind, words in _KINDS.items():
            found = [dict(epoch_shares(run, kind)) for run in own]
            epochs = sorted(set.intersection(*(set(each) for each in found)))
            line = [(epoch, statistics.fmean(each[epoch] for each in found)) for epoch in epochs]
            lines[f"{name}: {words}"] = line
            styles.append(Style(look.colour, dashes[kind], {"any_mean": "o", "dominated": "v", "majority": "s"}[kind]))
            rows += [(case.benchmark.name, len(own[0].config.tasks), kind, epoch, share) for epoch, share in line]
        shares = [statistics.fmean(s for _, s in lines[f"{name}: {words}"]) for words in _KINDS.values()]
        told = ", ".join(f"{words} at {100 * s:.0f} %" for words, s in zip(_KINDS.values(), shares, strict=True))
        said.append(f"{name} in conflict with the mean, over all epochs: {told} of the steps")
    figure = share_lines(lines, styles, ylabel=f"share of the steps of {method.name}\nin conflict with the mean")
    return Made(figure, ("benchmark", "tasks", "kind", "epoch", "share of steps"), rows, "; ".join(said))
