"""Methods beside each other over several seeds, each alone, with teleports, and with the controls of these.

``mtl-bench study BENCHMARK --methods …`` prints per case of the benchmark every metric of every method, and the
differences that matter, taken seed by seed, in the shape of appendix A.2 of the COST paper. The runs of one seed share
their start and their batches, so that such a difference holds less noise than one of two means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import TELEPORTS, make_benchmark, resolve_benchmark, teleport_class
from mtl_benchmarks.configuration.naming import by_label, method_label, teleport_label
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.baselines import single_tasks
from mtl_benchmarks.runs.ended import train_or_stop
from mtl_benchmarks.runs.rehearsal import rehearse
from mtl_benchmarks.runs.runner import RunResult, warn
from mtl_benchmarks.studies.controls import CONTROLS, control_of
from mtl_benchmarks.studies.records import ALONE, Record
from mtl_benchmarks.studies.rows import StudyRow, rows_of
from mtl_core import InvalidParameterError

__all__ = ["COST", "Study", "first_kinds", "study"]

COST = "cost"
"""The teleport that controls are made of where none is named."""


@dataclass(frozen=True)
class Study:
    """What a study came to.

    Attributes:
        records: one per run, those of single tasks first; also of runs that diverged.
        runs: those that were not known before, in the order in which they ended; one that stopped as its numbers
            became none has no values.
    """

    records: Sequence[Record]
    runs: Sequence[RunResult]

    @property
    def rows(self) -> list[StudyRow]:
        """One per method."""
        return rows_of(self.records)


@dataclass(frozen=True)
class _Planned:
    """A run of the study and where its number belongs."""

    config: RunConfig
    task: str
    method: str
    way: str
    control: str = ""
    options: str = ""


def study(
    benchmark: Choice,
    methods: Sequence[Choice],
    *,
    seeds: Sequence[int],
    out: str | Path,
    teleports: Sequence[str | Choice] = (ALONE,),
    settings: Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: Callable[[RunResult], None] | None = None,
    say: Callable[[str], None] | None = None,
    recorded: Callable[[Sequence[Record]], None] | None = None,
    known: Sequence[Record] = (),
) -> Study:
    """Train every method with every seed on one case of a benchmark; complete runs are only read.

    A run whose numbers become none does not end the others: it is in the records as diverged. Where that happens to a
    run with COST, whose moves are then not known to their end, its controls are the method alone.

    Args:
        benchmark: one case, with its options.
        methods: with the options that differ from their defaults; one that is named twice counts once.
        seeds: of the runs; likewise.
        out: the collection of runs.
        teleports: names, or names with options; ``"none"`` is the methods alone, which always belong to it, and
            ``"random"`` and ``"memory"`` without options the controls (``studies.controls``) of every COST that is
            named, or of its default where none is.
        settings: what else ``RunConfig.resolve`` takes, the same for all runs: ``tasks``, ``epochs`` and so on.
        processes: how many runs at a time.
        progress: called with each result.
        say: called with what a person should know, see ``run_all``; None: a warning.
        recorded: called with the records of all runs that have ended, whenever there are more of them, so that a study
            that is broken off leaves those.
        known: records of earlier studies. Runs without teleports that stand there, of the same protocol and with the
            same options, are taken from them and not trained; of one with teleports the moves are not known, which its
            controls repeat.

    Raises:
        UnknownNameError: a method, teleport or option that does not exist.
        InvalidParameterError: no method or no seed.
        InvalidInputError: a run would be refused at its first step; none is begun then.
    """
    if not methods or not seeds:
        raise InvalidParameterError(f"`methods` and `seeds` must not be empty, got {len(methods)} and {len(seeds)}.")
    told = say or warn
    named = by_label("methods", methods, method_label, told)
    ways, controls = _ways([Choice(each) if isinstance(each, str) else each for each in teleports], benchmark, told)
    results: dict[str, RunResult] = {}
    everything: list[_Planned] = []
    records: dict[int, Record] = {}
    earlier = {_identity(record): record for record in known if record.options}

    def resolve(method: Choice, teleport: Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, **(settings or {}))

    def train(planned: Sequence[_Planned]) -> None:
        everything.extend(planned)
        # One run can be planned several times: controls of two COSTs that never moved are both the method alone.
        wanted = {each.config.name: each.config for each in planned if each.config.name not in taken}
        fresh = [config for name, config in wanted.items() if name not in results]
        found = train_or_stop(fresh, out, processes=processes, progress=ended, say=say)
        results.update((result.config.name, result) for result in found)
        keep()

    def ended(result: RunResult) -> None:
        results[result.config.name] = result
        keep()
        if progress is not None:
            progress(result)

    def keep() -> None:
        for number, each in enumerate(everything):
            if number in records:
                continue
            if each.config.name in taken:
                # Under its name and way here: another order of the options makes another name, and the control of a
                # COST that never moved is the method alone.
                came_to = {name: getattr(taken[each.config.name], name) for name in _RESULTS}
                records[number] = replace(_blank(each, protocol), **came_to)
            elif each.config.name in results:
                records[number] = _record(each, results[each.config.name], protocol)
        if recorded is not None:
            recorded([records[number] for number in sorted(records)])

    joint = [
        _Planned(resolve(method, way, seed), "", name, label)
        for label, way in ways.items()
        for name, method in named.items()
        for seed in dict.fromkeys(seeds)
    ]
    alone = [_Planned(config, config.tasks[0], "", ALONE) for config in single_tasks(each.config for each in joint)]
    expected = _controls_in_advance(joint, controls, resolve)
    # Single-task runs of another network belong to the joint runs' protocol, which names that network.
    protocol = _protocol_digest(joint[0].config)
    taken = {
        each.config.name: record
        for each in (*alone, *joint)
        if each.way == ALONE and (record := earlier.get(_identity(_blank(each, protocol)))) is not None
    }
    if known:
        told(f"{len(taken)} of {len(alone) + len(joint)} runs are taken from tables of earlier studies.")
    rehearse([*(each.config for each in (*alone, *joint)), *expected.values()], out, say=say)
    # Controls come after the runs whose moves they repeat: their lengths and steps are not known before.
    train([*alone, *joint])
    controlled: list[_Planned] = []
    for each in joint:
        if each.config.teleport is not None and _is_cost(each.config.teleport):
            moved = results[each.config.name]
            for control in controls:
                config = resolve(each.config.method, control_of(control, moved), each.config.seed)
                # Where nothing moved the control is the method alone, and belongs to the others of its name all the
                # same: its options are what they would have been.
                options = _options_digest(expected[each.config.name, control], each.config)
                controlled.append(_Planned(config, "", each.method, each.way, control, options))
    train(controlled)
    return Study([records[number] for number in sorted(records)], list(results.values()))


def first_kinds(
    benchmark: Choice,
    methods: Sequence[Choice],
    *,
    seed: int,
    teleports: Sequence[str | Choice] = (ALONE,),
    settings: Mapping[str, Any] | None = None,
) -> list[RunConfig]:
    """What a study would train with one seed, to be looked at before a study of another case begins.

    Args:
        benchmark: one case, with its options.
        methods: as for :func:`study`.
        seed: of the runs.
        teleports: as for :func:`study`.
        settings: as for :func:`study`.
    """

    def resolve(method: Choice, teleport: Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, **(settings or {}))

    given = [Choice(each) if isinstance(each, str) else each for each in teleports]
    ways, controls = _ways(given, benchmark, lambda text: None)
    joint = [_Planned(resolve(m, way, seed), "", "", label) for label, way in ways.items() for m in methods]
    configs = [each.config for each in joint]
    return [*single_tasks(configs), *configs, *_controls_in_advance(joint, controls, resolve).values()]


def _controls_in_advance(
    joint: Sequence[_Planned], controls: Sequence[str], resolve: Callable[[Choice, Choice | None, int], RunConfig]
) -> dict[tuple[str, str], RunConfig]:
    """The controls by run and name, as they would be of runs that had moved once: known before the moves are."""
    moved = ({"accepted": True, "length": 1.0, "step": 0, "sigma": 1.0},)
    return {
        (config.name, control): resolve(
            config.method, control_of(control, RunResult(config, Path(), {}, moved, 0.0)), config.seed
        )
        for config in (each.config for each in joint)
        if config.teleport is not None and _is_cost(config.teleport)
        for control in controls
    }


_RESULTS = ("moves", "seconds", "diverged", "values")
"""What is known of a run once it has ended."""


def _blank(planned: _Planned, protocol: str) -> Record:
    """What is known of a run before it has ended."""
    config = planned.config
    return Record(
        benchmark=config.benchmark.name,
        case=_options(make_benchmark(config.benchmark).case_options()),
        protocol=protocol,
        task=planned.task,
        method=planned.method,
        way=planned.way,
        control=planned.control,
        seed=config.seed,
        moves=0,
        seconds=0.0,
        diverged=False,
        values={},
        options=planned.options or _options_digest(config),
    )


def _identity(record: Record) -> tuple[object, ...]:
    """What tells a run from all others. The method's name does not: its options are in the digest, in one order."""
    return (
        record.benchmark,
        record.case,
        record.protocol,
        record.task,
        record.way,
        record.control,
        record.seed,
        record.options,
    )


def _record(planned: _Planned, result: RunResult, protocol: str) -> Record:
    metrics = [metric.name for metric in make_benchmark(planned.config.benchmark).metrics]
    # Tables of records hold finite values, and no difference or rank can be made of others.
    values = {} if result.has_diverged else {m: result.values[m] for m in metrics if m in result.values}
    return replace(
        _blank(planned, protocol),
        moves=sum(bool(event.get("accepted")) for event in result.events),
        seconds=result.seconds,
        diverged=result.has_diverged,
        values=values,
    )


def _options_digest(config: RunConfig, *of_its_way: RunConfig) -> str:
    """Eight hexadecimal digits of all options of method and teleport, which names leave out where they are defaults."""
    groups = [each.as_group() for each in (config, *of_its_way)]
    told = [[group["method"], group["teleport"]] for group in groups]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def _protocol_digest(config: RunConfig) -> str:
    """Eight hexadecimal digits of everything that the runs of a study have in common, as tables of runs have it.

    Threads and processes change nothing but the order of sums, and devices count by their kind.
    """
    shared = {key: value for key, value in config.as_group().items() if key not in ("method", "teleport", "tasks")}
    shared |= {"threads": 1, "ranks": 1, "device": torch.device(config.device).type}
    if config.tasks != tuple(make_benchmark(config.benchmark).tasks):  # older tables of all tasks stay as they were
        shared["tasks"] = list(config.tasks)
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]


def _ways(
    teleports: Sequence[Choice], benchmark: Choice, say: Callable[[str], None]
) -> tuple[dict[str, Choice | None], list[str]]:
    """Label → what moves the parameters, and which controls belong to it."""
    moving: list[Choice] = []
    controls: list[str] = []
    for choice in teleports:
        if choice.name.lower() == ALONE:
            continue
        name = TELEPORTS.name_of(choice.name, teleport_class(choice.name))
        if name in CONTROLS and not choice.options:
            controls.append(name)
        else:
            moving.append(choice)
    if controls and not any(map(_is_cost, moving)):
        moving.append(Choice(COST))
    own = resolve_benchmark(benchmark)
    labelled = by_label("teleports", moving, lambda choice: teleport_label(choice, own), say)
    return {ALONE: None, **labelled}, list(dict.fromkeys(controls))


def _is_cost(choice: Choice) -> bool:
    return teleport_class(choice.name) is TELEPORTS.find(COST)


def _options(options: Mapping[str, Any]) -> str:
    values = {name: value.name if isinstance(value, Choice) else value for name, value in options.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())
