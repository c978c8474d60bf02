"""The moving parts of a run: model, optimiser, method, data and what is recorded of them, and their state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn, optim

from mtl_benchmarks.batches import BatchSource
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.components import make_benchmark, make_method
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.randomness import random_state, set_random_state
from mtl_benchmarks.recorder import Recorder
from mtl_core import Problem, step
from mtl_core.extension import CountsEpochs, Remembers, offers

__all__ = ["Progress", "Trainer"]


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


class Trainer:
    """What one run trains, and where it stands.

    Args:
        config: the resolved configuration.
    """

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
        """Everything a restart needs: plain data and tensors."""
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
        """Go on from what :meth:`state_dict` gave."""
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
        """Evaluate, and stand at the beginning of the next epoch."""
        evaluation = self.benchmark.evaluate(self.model, device=self.config.device)
        learned = {
            split: {name: value for name, value in values.items() if self.is_learned(name)}
            for split, values in evaluation.items()
        }
        self.recorder.end_epoch(learned)
        self.epoch += 1
        self.index = 0
