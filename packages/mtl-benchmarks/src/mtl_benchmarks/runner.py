"""A training run that can be killed at any moment and gives the same numbers when it is started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn, optim

from mtl_benchmarks.batches import BatchSource
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.components import make_benchmark, make_method
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.randomness import random_state, seeded, set_random_state
from mtl_benchmarks.recorder import Recorder
from mtl_benchmarks.results import RunDirectory
from mtl_core import Problem, ResultsDirectoryError, step
from mtl_core.checks import positive_int
from mtl_core.extension import CountsEpochs, Remembers, offers

__all__ = ["Progress", "RunResult", "load_result", "run"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, handed to the ``progress`` callback after every step.

    Attributes:
        done: steps taken, those before a restart included.
        total: steps of the whole run.
        epoch: the current epoch, from 0.
        recorder: what has been recorded so far; reading losses from it waits for the device.
    """

    done: int
    total: int
    epoch: int
    recorder: Recorder


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


class _Run:
    """The moving parts of one run, and their state."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.benchmark: Benchmark = make_benchmark(config.benchmark)
        self.model: nn.Module = self.benchmark.build().to(config.device)
        self.problem: Problem = self.benchmark.problem(self.model, tasks=config.tasks)
        self.optimizer: optim.Optimizer = self.benchmark.optimizer(self.problem, lr=config.lr)
        self.batches: BatchSource[Any] = self.benchmark.batches(
            batch_size=config.batch_size, seed=config.seed, device=config.device
        )
        self.method = make_method(
            config.method,
            config.teleport,
            seed=config.seed,
            device=config.device,
            probe_batches=self.benchmark.probe_batches(self.batches),
        )
        self.recorder = Recorder(config.tasks)
        self.epoch = 0
        self.index = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if offers(self.method, Remembers) else None,
            "recorder": self.recorder.state_dict(),
            "random": random_state(),
            "epoch": self.epoch,
            "index": self.index,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["method"] is not None:
            self.method.load_state_dict(state["method"])
        self.recorder.load_state_dict(state["recorder"])
        set_random_state(state["random"])
        self.epoch, self.index, self.seconds = state["epoch"], state["index"], state["seconds"]

    def train_epoch(
        self, *, save: Callable[[], None], every: int | None, progress: Callable[[Progress], None] | None
    ) -> None:
        """The steps of the current epoch that are still to be taken."""
        config, n_batches = self.config, len(self.batches)
        if self.index == 0 and offers(self.method, CountsEpochs):
            self.method.start_epoch(self.epoch)
        while self.index < n_batches:
            batch = self.batches.batch(self.epoch, self.index)
            begin = time.perf_counter()
            report = step(
                self.problem, batch, self.optimizer, self.method, heads=config.heads, max_norm=config.max_norm
            )
            self.seconds += time.perf_counter() - begin
            self.recorder.record_step(
                report, self.benchmark.trace(self.model), epoch=self.epoch, step=self.epoch * n_batches + self.index
            )
            self.index += 1
            if every is not None and self.index % every == 0 and self.index < n_batches:
                save()
            if progress is not None:
                done = self.epoch * n_batches + self.index
                progress(Progress(done, config.epochs * n_batches, self.epoch, self.recorder))

    def is_learned(self, name: str) -> bool:
        """Whether a metric belongs to a task that this run trains, or to no single task."""
        task = next((metric.task for metric in self.benchmark.metrics if metric.name == name), None)
        return task not in self.benchmark.tasks or task in self.config.tasks

    def end_epoch(self) -> None:
        evaluation = self.benchmark.evaluate(self.model, device=self.config.device)
        learned = {
            split: {name: value for name, value in values.items() if self.is_learned(name)}
            for split, values in evaluation.items()
        }
        self.recorder.end_epoch(learned)
        self.epoch += 1
        self.index = 0


def run(
    config: RunConfig,
    directory: str | Path,
    *,
    checkpoint_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Train once, or finish what an earlier call with the same arguments began.

    After every epoch (and every ``checkpoint_every`` steps) a checkpoint with the model, the optimiser, the method, all
    random number generators and the position in the data replaces the one before. A call that finds one goes on
    from there; on the same machine and versions its metrics equal those of an unbroken run bit for bit. A
    complete run is only read.

    Args:
        config: the resolved configuration.
        directory: the run's own directory.
        checkpoint_every: steps between checkpoints within an epoch; None: at its end only.
        progress: called after every step.

    Returns:
        the complete run.

    Raises:
        ResultsDirectoryError: ``directory`` holds something else, a run with another configuration, or one that
            another process is working on.
    """
    if checkpoint_every is not None:
        positive_int("checkpoint_every", checkpoint_every)
    files = RunDirectory(directory, config.as_dict())
    if files.read_result() is not None:
        return load_result(directory)
    with files.exclusive(), seeded(config.seed, threads=config.threads):
        state = _Run(config)
        found = files.read_checkpoint()
        if found is not None:
            state.load_state_dict(found)

        def save() -> None:
            files.write_checkpoint(state.state_dict())

        while state.epoch < config.epochs:
            state.train_epoch(save=save, every=checkpoint_every, progress=progress)
            state.end_epoch()
            save()
            _write_tables(files, state)
        _write_tables(files, state)
        if state.recorder.trace:
            columns = [f"x{k + 1}" for k in range(len(state.recorder.trace[0]))]
            files.write_table("trace.csv", columns, state.recorder.trace)
        values = state.benchmark.reported(state.recorder.history)
        files.write_result({"values": values, "seconds": state.seconds, "steps": config.epochs * len(state.batches)})
    return load_result(directory)


def _write_tables(files: RunDirectory, state: _Run) -> None:
    metrics = {metric.name: (metric.task, metric.unit, metric.higher_is_better) for metric in state.benchmark.metrics}
    header = ("epoch", "split", "task", "metric", "unit", "higher_is_better", "value")
    files.write_table("metrics.csv", header, state.recorder.metric_rows(metrics))
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
