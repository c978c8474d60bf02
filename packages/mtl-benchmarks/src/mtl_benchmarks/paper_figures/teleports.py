"""Figures of the COST paper about single teleports and their trigger: 5b, 8, appendix 1 and appendix 3."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.figures.experiments import before_after_by_task, before_after_means, search_lines
from mtl_benchmarks.figures.palette import MANY_TASKS
from mtl_benchmarks.figures.sweeps import sweep_lines
from mtl_benchmarks.paper_figures.measures import kept_teleports
from mtl_benchmarks.paper_figures.setting import Made, Setting
from mtl_benchmarks.paper_figures.timing import times_beside
from mtl_benchmarks.runs.runner import RunResult
from mtl_core import InvalidInputError

__all__ = ["before_and_after", "before_and_after_later", "inside_one", "trigger_fractions"]

Kept = Sequence[tuple[RunResult, Mapping[str, Any]]]


def inside_one(setting: Setting) -> Made:
    """The terms of the objective at every point of the longest search among the kept teleports."""
    (method, *_) = setting.methods
    configs = [setting.config(method, setting.teleport, seed=seed) for seed in setting.seeds]
    kept = kept_teleports(setting.train(configs))
    if not kept:
        raise _none_kept(setting)
    run, event = max(kept, key=lambda each: len(each[1]["search_change"]))
    changes = [_number(value) for value in event["search_change"]]
    growth = [_number(value) for value in event["search_growth"]]
    every = _batches_in_turn(setting)
    rows = [(step, change, grown) for step, (change, grown) in enumerate(zip(changes, growth, strict=True))]
    first, last = (statistics.fmean(changes[part]) for part in (slice(0, every), slice(-every, None)))
    peak, end = (statistics.fmean(growth[part]) for part in (slice(0, every), slice(-every, None)))
    said = (
        f"the teleport at step {event['step']} of {run.config.label}, seed {run.config.seed}, {len(rows)} points: over "
        f"the first and the last {every} L_t is {first:.3g} and {last:.3g}, L_g over its start {peak:.3g} and {end:.3g}"
    )
    return Made(search_lines(changes, growth, every=every), ("step", "L_t", "L_g over its start"), rows, said)


def _batches_in_turn(setting: Setting) -> int:
    """How many probe batches a search looks at one after the other, as far as the options say."""
    assert setting.teleport is not None
    batches = setting.teleport.options.get("max_probe_batches", 8)
    return batches if isinstance(batches, int) else 1


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _none_kept(setting: Setting) -> InvalidInputError:
    name = setting.teleport.name if setting.teleport is not None else "none"
    return InvalidInputError(
        f"`--teleport` must move at least once for this figure, got {name} without a kept teleport. Train longer, or "
        "give another trigger: cost:trigger=always,max_per_epoch=none."
    )


def before_and_after(setting: Setting) -> Made:
    """Cosines with the mean and norms of every task, before and after each teleport of the first half of training."""
    return _examined(setting, later=False)


def before_and_after_later(setting: Setting) -> Made:
    """The same for the teleports of the second half."""
    return _examined(setting, later=True)


def _examined(setting: Setting, *, later: bool) -> Made:
    (method, *_) = setting.methods
    configs = [setting.config(method, setting.teleport, seed=seed) for seed in setting.seeds]
    every = kept_teleports(setting.train(configs))
    if not every:
        raise _none_kept(setting)
    last = max(int(event["step"]) for _, event in every)
    kept = [each for each in every if (2 * int(each[1]["step"]) > last) == later] or every
    order = list(range(1, len(kept) + 1))
    tasks = list(kept[0][1]["tasks"])
    quantities = {"cosine with the mean": "cosines", "gradient norm": "norms"}
    values = {
        text: {task: _pairs(kept, key, place) for place, task in enumerate(tasks)} for text, key in quantities.items()
    }
    rows: list[tuple[Any, ...]] = []
    for number, (run, event) in zip(order, kept, strict=True):
        for place, task in enumerate(tasks):
            measured = [event[f"{key}_{when}"][place] for key in quantities.values() for when in ("before", "after")]
            rows.append((number, run.config.seed, event["step"], task, *measured))
    header = ("teleport", "seed", "step", "task", "cosine before", "cosine after", "norm before", "norm after")
    draw = before_after_by_task if len(tasks) <= MANY_TASKS else before_after_means
    figure = draw(values, order=order, signed="cosine with the mean", xlabel="teleport, in order")
    return Made(figure, header, rows, _told(kept))


def _pairs(kept: Kept, key: str, place: int) -> tuple[list[float], list[float]]:
    before, after = ([_number(event[f"{key}_{when}"][place]) for _, event in kept] for when in ("before", "after"))
    return before, after


def _told(kept: Kept) -> str:
    smallest = {when: [event[f"min_cosine_{when}"] for _, event in kept] for when in ("before", "after")}
    positive = {when: sum(value >= 0 for value in values) for when, values in smallest.items()}
    grown = sum(event["mean_norm_after"] > event["mean_norm_before"] for _, event in kept)
    tasks = [
        after > before
        for _, event in kept
        for before, after in zip(event["norms_before"], event["norms_after"], strict=True)
        if before is not None and after is not None
    ]
    return (
        f"{len(kept)} kept teleports: all tasks agree with the mean before {positive['before']} and after "
        f"{positive['after']} of them, the norm of the mean gradient has grown by {grown}, that of a task in "
        f"{sum(tasks)} of {len(tasks)} cases"
    )


_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)


def trigger_fractions(setting: Setting) -> Made:
    """What stands for a run and the time of an epoch, against the fraction of tasks that must conflict."""
    (method, *_) = setting.methods
    assert setting.teleport is not None
    base = setting.teleport
    planned = {
        (fraction, seed): setting.config(method, _with_fraction(base, fraction), seed=seed)
        for fraction in (*_FRACTIONS, None)
        for seed in setting.seeds
    }
    found = setting.measured(planned)
    names: dict[float | None, str] = {fraction: f"{fraction:g}" for fraction in _FRACTIONS}
    names[None] = method.name
    seconds, label, measured = times_beside({names[f]: planned[f, setting.seeds[0]] for f in names}, setting)
    rows: list[tuple[Any, ...]] = []
    values: dict[str, list[float]] = {name: [] for name in names.values()}
    for (fraction, seed), run in found.runs.items():
        values[names[fraction]].append(found.values[fraction, seed])
        rows.append((names[fraction], "run", seed, found.values[fraction, seed], *_counts(run)))
    rows += [(name, "epoch", k, each, "", "") for name, own in seconds.items() for k, each in enumerate(own, start=1)]
    figure = sweep_lines(
        {fraction: (values[names[fraction]], seconds[names[fraction]]) for fraction in _FRACTIONS},
        xlabel="fraction of tasks that must conflict with the mean",
        left=found.label,
        right=label,
        reference=values[method.name],
        named=f"{method.name} alone",
    )
    told = ", ".join(f"{_average(rows, names[f], 4)} and {_average(rows, names[f], 5)} at {f:g}" for f in _FRACTIONS)
    said = f"{len(setting.seeds)} seeds; teleports a run, kept and undone: {told}; {measured}"
    header = ("fraction", "kind", "seed or turn", f"{found.label}, or seconds", "kept teleports", "undone teleports")
    return Made(figure, header, rows, said)


def _counts(run: RunResult) -> tuple[int, int]:
    """Teleports of a run that were kept, and undone."""
    moves = [bool(event["accepted"]) for event in run.events if event.get("kind") == "teleport"]
    return sum(moves), len(moves) - sum(moves)


def _average(rows: Sequence[tuple[Any, ...]], name: str, column: int) -> str:
    return f"{statistics.fmean(row[column] for row in rows if row[:2] == (name, 'run')):.3g}"


def _with_fraction(teleport: Choice, fraction: float | None) -> Choice | None:
    """The teleport with a majority as its trigger; None for none at all."""
    if fraction is None:
        return None
    return Choice(teleport.name, {**teleport.options, "trigger": Choice("majority", {"fraction": fraction})})
