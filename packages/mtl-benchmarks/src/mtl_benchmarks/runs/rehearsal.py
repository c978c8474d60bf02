"""What a first step refuses, found for every run of a plan before the first of them begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from pathlib import Path

import torch

from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.batching.randomness import seeded
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.components.options import Choice, construct
from mtl_benchmarks.components.sizes import network_within_memory, within_memory
from mtl_benchmarks.configuration.making import ADAPTERS, make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.parts import RunParts, make_parts
from mtl_benchmarks.engine.precision import arithmetic
from mtl_benchmarks.ranks import Ranks, current_ranks
from mtl_benchmarks.runs.first_evaluation import FirstEvaluations
from mtl_benchmarks.runs.runner import refuse_other_ranks
from mtl_benchmarks.storage.files import exists
from mtl_benchmarks.storage.results import Collection, RunDirectory
from mtl_core import (
    InvalidInputError,
    NoLossesError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteStateError,
    SolverError,
    step,
)
from mtl_core.extension import CountsEpochs, offers

__all__ = ["left_to_do", "rehearse"]

_OF_NUMBERS = (NoLossesError, NonFiniteGradientError, NonFiniteLossError, NonFiniteStateError, SolverError)
"""What the numbers of a step bring about and no configuration says: it is for the run itself to tell."""


def left_to_do(configs: Sequence[RunConfig], out: str | Path) -> list[RunConfig]:
    """The runs of a collection that have no result yet."""
    return [c for c in configs if not exists(RunDirectory(Collection.path_in(out, c.name)).result_file)]


def rehearse(configs: Sequence[RunConfig], out: str | Path, *, say: Callable[[str], None] | None = None) -> None:
    """Take the first step of every kind of run that is left to do, and evaluate, on parts that are thrown away.

    Batches that a method cannot be given, tasks that a method does not know, a model that an adapter does not fit: all
    that is refused when parts meet for the first time would otherwise be refused when the run's turn comes, after the
    work of those before it. Of each benchmark's evaluation as little is done as shows whether it can be, see
    ``FirstEvaluations``: what it raises would end the first run after its first epoch. Runs that differ in their seed
    are of one kind. Nothing is written, and what was looked at once in a process is not looked at again.

    Args:
        configs: of the runs.
        out: the collection in which they are, or are to be; complete ones are passed over.
        say: called while a benchmark makes what is made once on a machine; None: silence.

    Raises:
        InvalidInputError: a run would be refused; the text says which.
    """
    kinds: dict[str, RunConfig] = {}
    for config in left_to_do(configs, out):
        kinds.setdefault(config.digest(with_seed=False), config)
    benchmarks: dict[str, Benchmark] = {}
    evaluations: dict[str, FirstEvaluations] = {}
    for digest, config in kinds.items():
        if digest in _rehearsed():
            continue
        try:
            refuse_other_ranks(config)
            # One for all of its runs: to open its data may mean to look at every file.
            key = json.dumps(config.benchmark.as_dict())
            if key not in benchmarks:
                benchmarks[key] = make_benchmark(config.benchmark)
                benchmarks[key].prepare(say or _silence)
                evaluations[key] = FirstEvaluations(benchmarks[key])
            _take_first_step(config, benchmarks[key], evaluations[key])
        except InvalidInputError as error:
            if len(kinds) > 1:
                error.args = (f"{error} This is of the run {config.label!r}; no run was begun.",)
            raise
        _rehearsed().add(digest)


@cache
def _rehearsed() -> set[str]:
    """Digests of the kinds of runs that this process has looked at."""
    return set()


def _silence(text: str) -> None:
    """What has no listener."""


def _take_first_step(config: RunConfig, benchmark: Benchmark, evaluations: FirstEvaluations) -> None:
    device = current_ranks().device(config.device)
    with seeded(config.seed, threads=config.threads):
        what = f"the network of benchmark {config.benchmark.name!r}"
        # By a copy: a benchmark that keeps what it has built must not keep one without values.
        network_within_memory(what, copy(benchmark).build, config.benchmark.options)
    with (
        seeded(config.seed, threads=config.threads),
        arithmetic(config.training.precision, device=config.device),
    ):
        # The share of the first process, which takes its step by itself: the others wait for its word.
        parts = make_parts(config, benchmark, ranks=Ranks(size=config.ranks), device=device)
        parts.step_batches.open(Loading())
        try:
            if offers(parts.method, CountsEpochs):
                parts.method.start_epoch(0)
            batch = parts.step_batches.batch(0, 0)
            with within_memory("the first step"):
                step(parts.problem, batch, parts.optimizer, parts.method, **parts.options)
            _attach(config, parts)
            evaluations.look(parts.model, config.tasks, device=device, alone=config.ranks == 1)
        except _OF_NUMBERS:
            pass
        finally:
            parts.step_batches.close()


def _attach(config: RunConfig, parts: RunParts) -> None:
    """Look whether a teleport's adapter fits the model: the first teleport may come late in a run."""
    adapter = None if config.teleport is None else config.teleport.options.get("adapter")
    if isinstance(adapter, Choice):
        parts.model.eval()  # an adapter may look whether it changes nothing, which dropout would hide
        generator = torch.Generator().manual_seed(config.seed)
        made = construct(ADAPTERS.find(adapter.name), adapter.options)
        made.attach(parts.problem, batch=parts.batches.batch(0, 0), generator=generator).detach()
