"""A training run that can be killed at any moment and gives the same numbers when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.following import follow
from mtl_benchmarks.loading import Loading
from mtl_benchmarks.precision import arithmetic
from mtl_benchmarks.randomness import seeded
from mtl_benchmarks.ranks import current_ranks
from mtl_benchmarks.results import RunDirectory
from mtl_benchmarks.trainer import Progress, Trainer
from mtl_core import InvalidParameterError, ResultsDirectoryError
from mtl_core.checks import positive_int

__all__ = ["RunResult", "load_result", "run"]


@dataclass(frozen=True)
class RunResult:
    """A complete run.

    Attributes:
        config: its resolved configuration.
        directory: where its files are.
        values: the reported value of each metric.
        events: what happened in it, in order.
        seconds: time spent in training steps, without evaluations and checkpoints.
    """

    config: RunConfig
    directory: Path
    values: Mapping[str, float]
    events: tuple[Mapping[str, Any], ...]
    seconds: float


def run(
    config: RunConfig,
    directory: str | Path,
    *,
    checkpoint_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    loading: Loading = Loading(),
) -> RunResult:
    """Train once, or finish what an earlier call with the same arguments began.

    After every evaluation (and every ``checkpoint_every`` steps) a checkpoint with the model, the optimiser, the
    method, all random number generators and the position in the data replaces the one before. A call that finds one
    goes on from there; on the same machine and versions its metrics equal those of an unbroken run bit for bit. A
    complete run is only read.

    Args:
        config: the resolved configuration.
        directory: the run's own directory.
        checkpoint_every: steps between checkpoints on the way from one evaluation to the next; None: none there.
        progress: called after every step.
        loading: how data is read ahead, where a benchmark reads it sample by sample; what reads ends with the run.

    Returns:
        the complete run.

    Where ``torchrun`` started several processes and they have a process group, all of them call this; the first alone
    touches the directory.

    Raises:
        ResultsDirectoryError: ``directory`` holds something else, a run with another configuration, or one that
            another process is working on.
        InvalidParameterError: the configuration is one of another number of processes.
    """
    if checkpoint_every is not None:
        positive_int("checkpoint_every", checkpoint_every)
    ranks = current_ranks()
    if config.ranks != ranks.size:
        raise InvalidParameterError(
            f"`ranks` must be the number of processes, got {config.ranks} with {ranks.size}. Start {config.ranks} by "
            "torchrun, or resolve the configuration where they run."
        )
    ranks.has_parted = False
    if not ranks.is_first:
        found: RunResult = follow(config, ranks, loading)
        return found
    with ranks.leading():
        result = _run_first(config, directory, checkpoint_every, progress, loading)
        ranks.say("end")
    shared: RunResult = ranks.share(result)
    return shared


def _run_first(
    config: RunConfig,
    directory: str | Path,
    checkpoint_every: int | None,
    progress: Callable[[Progress], None] | None,
    loading: Loading,
) -> RunResult:
    files = RunDirectory(directory, config.as_dict())
    if files.read_result() is not None:
        return load_result(directory)
    precise = arithmetic(config.training.precision, device=config.device)
    with files.exclusive(), seeded(config.seed, threads=config.threads), precise, ExitStack() as stack:
        state = Trainer(config, loading=loading)
        stack.callback(state.close)
        found = files.read_checkpoint()
        if found is not None:
            state.load_state_dict(found)

        def save() -> None:
            files.write_checkpoint(state.state_dict())

        while not state.is_finished:
            state.advance(save=save, every=checkpoint_every, progress=progress)
            save()
            _write_tables(files, state)
        _write_tables(files, state)
        if state.recorder.trace:
            columns = [f"x{k + 1}" for k in range(len(state.recorder.trace[0]))]
            files.write_table("trace.csv", columns, state.recorder.trace)
        files.write_result({"values": state.reported(), "seconds": state.seconds, "steps": state.step})
    return load_result(directory)


def _write_tables(files: RunDirectory, state: Trainer) -> None:
    metrics = {metric.name: (metric.task, metric.unit, metric.higher_is_better) for metric in state.benchmark.metrics}
    header = ("epoch", "step", "split", "task", "metric", "unit", "higher_is_better", "value")
    files.write_table("metrics.csv", header, state.recorder.metric_rows(metrics))
    files.write_table("times.csv", ("epoch", "step", "part", "seconds"), state.recorder.time_rows())
    files.write_events(state.recorder.events)


def load_result(directory: str | Path) -> RunResult:
    """Read a complete run.

    Raises:
        ResultsDirectoryError: there is no run, or it is not complete.
    """
    files = RunDirectory.existing(directory)
    result = files.read_result()
    if result is None:
        raise ResultsDirectoryError(
            f"`directory` must hold a complete run, got {str(directory)!r}, which was broken off. Start it again to "
            "finish it."
        )
    return RunResult(
        RunConfig.from_dict(files.read_config()),
        files.path,
        result["values"],
        tuple(files.read_events()),
        float(result["seconds"]),
    )
