"""Methods beside each other over several seeds, each alone, with teleports, and with the controls of these.

``mtl-bench study BENCHMARK --methods …`` prints per case of the benchmark every metric of every method, and the
differences that matter, taken seed by seed, in the shape of appendix A.2 of the COST paper. The runs of one seed share
their start and their batches, so that such a difference holds less noise than one of two means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import TELEPORTS, resolve_benchmark, teleport_class
from mtl_benchmarks.configuration.naming import by_label, method_label, teleport_label
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.baselines import single_tasks
from mtl_benchmarks.runs.ended import train_or_stop
from mtl_benchmarks.runs.rehearsal import rehearse
from mtl_benchmarks.runs.runner import RunResult, warn
from mtl_benchmarks.studies.controls import CONTROLS, control_of
from mtl_benchmarks.studies.ledger import Ledger
from mtl_benchmarks.studies.planned import PlannedRun, identity, options_digest, protocol_digest
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

    def resolve(method: Choice, teleport: Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, **(settings or {}))

    joint = [
        PlannedRun(resolve(method, way, seed), "", name, label)
        for label, way in ways.items()
        for name, method in named.items()
        for seed in dict.fromkeys(seeds)
    ]
    alone = [PlannedRun(config, config.tasks[0], "", ALONE) for config in single_tasks(each.config for each in joint)]
    expected = _controls_in_advance(joint, controls, resolve)
    # Single-task runs of another network belong to the joint runs' protocol, which names that network.
    protocol = protocol_digest(joint[0].config)
    taken = _standing_in(known, [*alone, *joint], protocol)
    if known:
        told(f"{len(taken)} of {len(alone) + len(joint)} runs are taken from tables of earlier studies.")
    rehearse([*(each.config for each in (*alone, *joint)), *expected.values()], out, say=say)
    ledger = Ledger(protocol, taken, recorded)

    def ended(result: RunResult) -> None:
        ledger.ended([result])
        if progress is not None:
            progress(result)

    def train(planned: Sequence[PlannedRun]) -> None:
        fresh = [run.config for run in ledger.plan(planned)]
        ledger.ended(train_or_stop(fresh, out, processes=processes, progress=ended, say=say))

    # Controls come after the runs whose moves they repeat: their lengths and steps are not known before.
    train([*alone, *joint])
    controlled: list[PlannedRun] = []
    for each in joint:
        if each.config.teleport is not None and _is_cost(each.config.teleport):
            moved = ledger.results[each.name]
            for control in controls:
                config = resolve(each.config.method, control_of(control, moved), each.config.seed)
                # Where nothing moved the control is the method alone, and belongs to the others of its name all the
                # same: its options are what they would have been.
                options = options_digest(expected[each.name, control], each.config)
                controlled.append(PlannedRun(config, "", each.method, each.way, control, options))
    train(controlled)
    return Study(ledger.records, list(ledger.results.values()))


def _standing_in(known: Sequence[Record], planned: Sequence[PlannedRun], protocol: str) -> dict[str, Record]:
    """Name → record of those planned runs without teleports that stand in tables of earlier studies."""
    earlier = {identity(record): record for record in known if record.options}
    blank = {run.name: identity(run.blank(protocol)) for run in planned if run.way == ALONE}
    return {name: earlier[found] for name, found in blank.items() if found in earlier}


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
    joint = [PlannedRun(resolve(m, way, seed), "", "", label) for label, way in ways.items() for m in methods]
    configs = [each.config for each in joint]
    return [*single_tasks(configs), *configs, *_controls_in_advance(joint, controls, resolve).values()]


def _controls_in_advance(
    joint: Sequence[PlannedRun], controls: Sequence[str], resolve: Callable[[Choice, Choice | None, int], RunConfig]
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
