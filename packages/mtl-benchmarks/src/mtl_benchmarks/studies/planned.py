"""A run that a study plans, and the line of its table that it fills."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.studies.records import Record

__all__ = ["PlannedRun", "identity", "options_digest", "protocol_digest"]


@dataclass(frozen=True)
class PlannedRun:
    """A run of the study and where its number belongs.

    Attributes:
        config: of the run.
        task: the task that is trained alone; empty for a joint run.
        method: its name in the study.
        way: what moves the parameters, likewise.
        control: which control of ``way`` this is; empty for the way itself.
        options: digest of the options, where it is not that of ``config``.
    """

    config: RunConfig
    task: str
    method: str
    way: str
    control: str = ""
    options: str = ""

    @property
    def name(self) -> str:
        """The run's name in the collection; several planned runs may be one."""
        return self.config.name

    def blank(self, protocol: str) -> Record:
        """What is known of the run before it has ended."""
        config = self.config
        return Record(
            benchmark=config.benchmark.name,
            case=_told(make_benchmark(config.benchmark).case_options()),
            protocol=protocol,
            task=self.task,
            method=self.method,
            way=self.way,
            control=self.control,
            seed=config.seed,
            moves=0,
            seconds=0.0,
            diverged=False,
            values={},
            options=self.options or options_digest(config),
        )

    def filled(self, protocol: str, result: RunResult) -> Record:
        """What the run came to."""
        metrics = [metric.name for metric in make_benchmark(self.config.benchmark).metrics]
        # Tables of records hold finite values, and no difference or rank can be made of others.
        values = {} if result.has_diverged else {m: result.values[m] for m in metrics if m in result.values}
        return replace(
            self.blank(protocol),
            moves=sum(bool(event.get("accepted")) for event in result.events),
            seconds=result.seconds,
            diverged=result.has_diverged,
            values=values,
        )

    def filled_from(self, protocol: str, known: Record) -> Record:
        """The same by the record of an earlier study.

        Under the run's name and way here: another order of the options makes another name, and the control of a COST
        that never moved is the method alone.
        """
        return replace(
            self.blank(protocol),
            moves=known.moves,
            seconds=known.seconds,
            diverged=known.diverged,
            values=known.values,
        )


def identity(record: Record) -> tuple[object, ...]:
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


def options_digest(config: RunConfig, *of_its_way: RunConfig) -> str:
    """Eight hexadecimal digits of all options of method and teleport, which names leave out where they are defaults."""
    groups = [each.as_group() for each in (config, *of_its_way)]
    told = [[group["method"], group["teleport"]] for group in groups]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def protocol_digest(config: RunConfig) -> str:
    """Eight hexadecimal digits of everything that the runs of a study have in common, as tables of runs have it.

    Threads and processes change nothing but the order of sums, and devices count by their kind.
    """
    shared = {key: value for key, value in config.as_group().items() if key not in ("method", "teleport", "tasks")}
    shared |= {"threads": 1, "ranks": 1, "device": torch.device(config.device).type}
    if config.tasks != tuple(make_benchmark(config.benchmark).tasks):  # older tables of all tasks stay as they were
        shared["tasks"] = list(config.tasks)
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]


def _told(options: Mapping[str, Any]) -> str:
    values = {name: value.name if isinstance(value, Choice) else value for name, value in options.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())
