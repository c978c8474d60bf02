"""Runs that may stand in one table, and in it the runs that differ in their seed alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtl_benchmarks.comparison.estimates import Estimate
from mtl_benchmarks.comparison.moves import Moves, moves
from mtl_benchmarks.comparison.protocols import differing, flat, protocol_of, short_name
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_benchmark, resolve_method, resolve_teleport
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.metrics import Baseline, Metric, delta_m_or_nan
from mtl_benchmarks.runs.baselines import measure_against
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.measure import Measure
from mtl_benchmarks.runs.runner import RunResult
from mtl_core import InvalidInputError

__all__ = ["Comparison", "Group", "compare"]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: method and teleport, with whatever else tells the group from its neighbours.
        config: the configuration of the first.
        runs: by seed.
        values: the reported metrics.
        deltas: seed → Δm against single-task runs by the same code, in percent; empty without them.
        moves: what the teleports did.
        seconds: training time of one run, over those that did not stop.
    """

    label: str
    config: RunConfig
    runs: tuple[RunResult, ...]
    values: Mapping[str, Estimate]
    deltas: Mapping[int, float]
    moves: Moves | None
    seconds: float

    @property
    def delta_m(self) -> Estimate | None:
        """Δm over the seeds of the multi-task runs, with the baselines held fixed; None without baselines."""
        return Estimate.of(list(self.deltas.values())) if self.deltas else None

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed → value of a metric."""
        return {run.config.seed: run.values[metric] for run in self.runs if metric in run.values}


@dataclass(frozen=True)
class Comparison:
    """Groups that may be compared: one benchmark with the same options, tasks, training, precision and device.

    The network of the single-task runs behind Δm is one of these: Δm against one network never stands beside Δm against
    another.

    Attributes:
        protocol: what they have in common, as :func:`protocol_of` gives it.
        tasks: the tasks that are trained.
        told_apart: option → value, where other comparisons beside this one have another value.
        groups: the multi-task groups, then the single-task ones.
        measure: what stands for a run: Δm, or a metric where there is none.
    """

    protocol: Mapping[str, Any]
    tasks: tuple[str, ...]
    told_apart: Mapping[str, Any]
    groups: tuple[Group, ...]
    measure: Measure

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """The single-task values behind Δm; empty without them."""
        return self.measure.baselines

    @property
    def config(self) -> RunConfig:
        """That of the first group."""
        return self.groups[0].config

    @property
    def full(self) -> list[Group]:
        """The groups that train all of :attr:`tasks`."""
        return [group for group in self.groups if group.config.tasks == self.tasks]

    @property
    def metrics(self) -> list[Metric]:
        """Those that some group has a value of."""
        known = make_benchmark(self.config.benchmark).metrics
        return [metric for metric in known if any(metric.name in group.values for group in self.groups)]

    @property
    def case_keys(self) -> set[str]:
        """Options that tell the cases of the benchmark apart, which are no difference of protocol."""
        return set(make_benchmark(self.config.benchmark).case_options())

    @property
    def title(self) -> str:
        """Benchmark and case, and what tells this comparison from those beside it."""
        case = make_benchmark(self.config.benchmark).case_options()
        options = {**case, **{short_name(key): value for key, value in self.told_apart.items()}}
        return " · ".join([self.config.benchmark.name, *(f"{key} {_shown(value)}" for key, value in options.items())])

    @property
    def file_name(self) -> str:
        """The title as part of a file's name."""
        words = "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in self.title)
        return "-".join(filter(None, words.split("-")))


def compare(runs: Sequence[RunResult], *, others: Sequence[RunResult] = ()) -> list[Comparison]:
    """Sort runs into comparisons, and these into groups.

    Runs of different protocols never share a comparison. Single-task runs stand below the multi-task runs whose
    baselines they are, by protocol and network, and in a comparison of their own where there is none. Copies count
    once.

    Args:
        runs: complete runs.
        others: more runs, in which to look for single-task baselines.

    Returns:
        Comparisons in the order of their first runs.
    """
    asked = distinct(runs)[0]
    pool = distinct([*asked, *others])[0]
    places: dict[str, tuple[dict[str, Any], tuple[str, ...], list[RunResult]]] = {}
    for run in [run for run in asked if not run.config.is_single_task]:
        protocol = protocol_of(run.config)
        place = places.setdefault(_key(protocol, run.config.tasks), (protocol, run.config.tasks, []))
        place[2].append(run)
    for run in [run for run in asked if run.config.is_single_task]:
        protocol = protocol_of(run.config)
        # A single-task run belongs to every comparison that trains its task: those of subsets of tasks share it.
        homes = [p for p in places.values() if set(run.config.tasks) <= set(p[1]) and _alone(p[2][0]) == protocol]
        homes = homes or [places.setdefault(_key(protocol, ()), (protocol, (), []))]
        for _, _, members in homes:
            members.append(run)
    found = list(places.values())
    return [
        Comparison(protocol, tasks, _told_apart(number, found), *_groups(members, pool))
        for number, (protocol, tasks, members) in enumerate(found)
    ]


def _alone(run: RunResult) -> dict[str, Any]:
    """The protocol of the single-task runs of a multi-task run."""
    return protocol_of(run.config.single_task(run.config.tasks[0]))


def _key(protocol: Mapping[str, Any], tasks: tuple[str, ...]) -> str:
    return json.dumps([protocol, tasks], sort_keys=True)


def _told_apart(
    number: int, places: Sequence[tuple[dict[str, Any], tuple[str, ...], list[RunResult]]]
) -> dict[str, Any]:
    own, tasks, _ = places[number]
    beside = [p for p in places if p[0]["benchmark.name"] == own["benchmark.name"]]
    found = {key: own.get(key) for key in differing([p[0] for p in beside])}
    if any(p[1] != tasks for p in beside):
        found["tasks"] = list(tasks) or "each alone"
    return found


def _groups(runs: Sequence[RunResult], pool: Sequence[RunResult]) -> tuple[tuple[Group, ...], Measure]:
    grouped: dict[str, list[RunResult]] = {}
    for run in runs:
        grouped.setdefault(run.config.digest(with_seed=False), []).append(run)
    members = sorted(grouped.values(), key=_place([group[0].config for group in grouped.values()]))
    measure = measure_against(members[0][0].config, pool)
    labels = _labels([group[0].config for group in members])
    groups = tuple(
        _group(label, group, () if group[0].config.is_single_task else measure.baselines)
        for label, group in zip(labels, members, strict=True)
    )
    return groups, measure


def _place(configs: Sequence[RunConfig]) -> Callable[[Sequence[RunResult]], tuple[int, int, int]]:
    """Methods in order of appearance, each alone before its teleports; then the single tasks in the tasks' order.

    Teleports stand in the same order below each method.
    """
    methods = list(dict.fromkeys(config.method.name for config in configs))
    tasks = make_benchmark(configs[0].benchmark).tasks
    moves = [None]
    moves += [move for config in configs if (move := config.as_group()["teleport"]) is not None]

    def place(group: Sequence[RunResult]) -> tuple[int, int, int]:
        config = group[0].config
        if config.is_single_task:
            return 1, tasks.index(config.tasks[0]), 0
        return 0, methods.index(config.method.name), moves.index(config.as_group()["teleport"])

    return place


def _group(label: str, runs: Sequence[RunResult], baselines: Sequence[Baseline]) -> Group:
    ordered = tuple(sorted(runs, key=lambda run: run.config.seed))
    # A metric that only some seeds have would make a mean over fewer seeds than the table says.
    names = [name for name in ordered[0].values if all(name in run.values for run in ordered)]
    return Group(
        label=label,
        config=ordered[0].config,
        runs=ordered,
        values={name: Estimate.of([run.values[name] for run in ordered]) for name in names},
        deltas={run.config.seed: delta_m_or_nan(run.values, baselines) for run in ordered} if baselines else {},
        moves=moves(ordered),
        seconds=statistics.fmean([run.seconds for run in ordered if not run.stopped] or [math.nan]),
    )


def _labels(configs: Sequence[RunConfig]) -> list[str]:
    """Labels that differ: where two would be equal, the options in which they differ are added.

    Those that have their default are left out, unless labels would be equal then, as where files of an older version
    lack an option.
    """
    short = [_label(config, configs, all_options=False) for config in configs]
    long = [
        _label(config, configs, all_options=True) if short.count(label) > 1 else label
        for config, label in zip(configs, short, strict=True)
    ]
    # Of files that somebody has written, in which numbers differ as texts alone; tables have their rows by label.
    return [
        f"{label} [{config.digest(with_seed=False)}]" if long.count(label) > 1 else label
        for config, label in zip(configs, long, strict=True)
    ]


def _label(config: RunConfig, configs: Sequence[RunConfig], *, all_options: bool) -> str:
    beside = [flat(other.as_group()) for other in configs if other.label == config.label]
    own = flat(config.as_group())
    usual = {} if all_options else _defaults(config)
    shown = {
        key: value
        for key, value in own.items()
        if any(other.get(key) != value for other in beside) and not (key in usual and usual[key] == value)
    }

    def of(part: str) -> str:
        """What differs in one part, which the part's name stands before; what has been said is not said again."""
        keys = [key for key in shown if key.startswith(part)]
        inner = ", ".join(f"{key.removeprefix(part).replace('.options', '')}={_shown(shown.pop(key))}" for key in keys)
        return f" ({inner})" if inner else ""

    if config.is_single_task:
        name = config.label
    else:
        name = config.method.name + of("method.options.")
        name += "" if config.teleport is None else f" + {config.teleport.name}{of('teleport.options.')}"
    other = of("") or (f" ({found})" if (found := _other_network(config, configs[0])) else "")
    return name + other


def _defaults(config: RunConfig) -> dict[str, Any]:
    """The options of method and teleport as they are where none is given, by their keys in a flat group."""
    try:
        plain = replace(
            config,
            method=resolve_method(Choice(config.method.name)),
            teleport=config.teleport and resolve_teleport(Choice(config.teleport.name), config.benchmark),
        )
    except InvalidInputError:  # a class that is not here any more, or one with options that must be given
        return {}
    return {key: value for key, value in flat(plain.as_group()).items() if ".options." in key}


def _other_network(config: RunConfig, first: RunConfig) -> str:
    """The network of a single-task run that stands below runs of another one."""
    own = config.benchmark.options.get("model")
    is_other = config.is_single_task and not first.is_single_task and own != first.benchmark.options.get("model")
    return str(own.name) if is_other and own is not None else ""


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
