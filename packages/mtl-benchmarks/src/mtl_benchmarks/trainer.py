"""The moving parts of a run: model, optimiser, method, data and what is recorded of them, and their state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from mtl_benchmarks.batches import BatchSource, Part, part_of
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.components import make_benchmark, make_method
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.forward import RunProblem
from mtl_benchmarks.randomness import random_state, set_random_state
from mtl_benchmarks.recorder import Recorder
from mtl_benchmarks.schedules import Place
from mtl_benchmarks.selection import Selection, learned_metrics
from mtl_core import MicroBatches, StepReport, step
from mtl_core.extension import CountsEpochs, Remembers, offers

__all__ = ["Progress", "Trainer"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, handed to the ``progress`` callback after every step.

    Attributes:
        done: steps taken, those before a restart included.
        total: steps of the whole run, unless it ends early.
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

    Attributes:
        step: steps taken.
        seconds: time spent in training steps, without data, evaluations and checkpoints.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.training = config.training
        self.benchmark: Benchmark = make_benchmark(config.benchmark)
        self.model: nn.Module = self.benchmark.build().to(config.device)
        self.problem = RunProblem(
            self.benchmark.problem(self.model, tasks=config.tasks),
            device=config.device,
            precision=self.training.precision,
        )
        self.optimizer: optim.Optimizer = self.training.optimizer.build(self.problem)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.batches: BatchSource[Any] = self.benchmark.batches(
            batch_size=self.training.batch_size, seed=config.seed, device=config.device
        )
        self.method = make_method(
            config.method,
            config.teleport,
            seed=config.seed,
            device=config.device,
            probe_batches=self.benchmark.probe_batches(self.batches),
        )
        self.scaler = _scaler(config)
        self.selection = Selection(self.benchmark, config.tasks, self.training)
        self.recorder = Recorder(config.tasks)
        self.step = 0
        self.seconds = 0.0
        self._reductions = 0
        self._over = False
        self._options: dict[str, Any] = {"heads": config.heads, "scaler": self.scaler}
        if self.training.clip is not None:
            self._options |= self.training.clip.for_step()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a pass over the training set."""
        return len(self.batches)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, unless it ends early."""
        return self.training.total_steps(self.steps_per_epoch)

    @property
    def is_finished(self) -> bool:
        """Whether the last evaluation is done."""
        return self._over or (self.step >= self.total_steps and self._is_evaluated)

    @property
    def _is_evaluated(self) -> bool:
        return bool(self.recorder.steps) and self.recorder.steps[-1] == self.step

    def state_dict(self) -> dict[str, Any]:
        """Everything a restart needs: plain data and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if offers(self.method, Remembers) else None,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "recorder": self.recorder.state_dict(),
            "random": random_state(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["method"] is not None:
            self.method.load_state_dict(state["method"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.recorder.load_state_dict(state["recorder"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self._look_back()
        set_random_state(state["random"])

    def advance(
        self, *, save: Callable[[], None], every: int | None, progress: Callable[[Progress], None] | None
    ) -> None:
        """The steps up to the next evaluation, and the evaluation.

        Args:
            save: writes a checkpoint.
            every: steps between the checkpoints that are written on the way; None: none.
            progress: called after every step.
        """
        target = self._next_evaluation()
        while self.step < target:
            self._take_step()
            if every is not None and self.step % every == 0 and self.step < target:
                save()
            if progress is not None:
                epoch = (self.step - 1) // self.steps_per_epoch
                progress(Progress(self.step, self.total_steps, epoch, self.recorder))
        self._evaluate()

    def reported(self) -> dict[str, float]:
        """The values that stand for the run, as the protocol says."""
        return self.selection.reported(self.recorder.history)

    def _next_evaluation(self) -> int:
        every = self.training.evaluate_every.steps(self.steps_per_epoch)
        # A run that was broken off between its last step and the evaluation has no step left to take before it.
        due = self.step if self.step and self.step % every == 0 and not self._is_evaluated else self.step + 1
        return min(-(-due // every) * every, self.total_steps)

    def _take_step(self) -> None:
        epoch, index = divmod(self.step, self.steps_per_epoch)
        if index == 0 and offers(self.method, CountsEpochs):
            self.method.start_epoch(epoch)
        begin = time.perf_counter()
        batch = self._batch(epoch, index)
        loaded = time.perf_counter()
        self._set_rates()
        forward = self.problem.seconds
        report = step(self.problem, batch, self.optimizer, self.method, **self._options)
        end = time.perf_counter()
        self.seconds += end - loaded
        self._record(report, epoch, data=loaded - begin, forward=self.problem.seconds - forward, whole=end - loaded)
        self.step += 1

    def _batch(self, epoch: int, index: int) -> Any:
        n_parts = self.training.accumulate
        if n_parts == 1:
            return self.batches.batch(epoch, index)
        return MicroBatches(part_of(self.batches, epoch, index, Part(k, n_parts)) for k in range(n_parts))

    def _record(self, report: StepReport, epoch: int, *, data: float, forward: float, whole: float) -> None:
        self.recorder.record_step(report, self.benchmark.trace(self.model), epoch=epoch, step=self.step)
        teleports = 0.0
        for event in report.events:
            teleports += float(event.as_dict().get("seconds", 0.0))
        self.recorder.record_times(data=data, forward=forward, whole=whole, teleports=teleports)

    def _set_rates(self) -> None:
        place = Place(self.step, self.total_steps, self.steps_per_epoch, self._reductions)
        for group, base in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = self.training.schedule.rate(base, place)

    def _look_back(self) -> None:
        """What follows from the evaluations so far: it is worked out from them, and not stored."""
        self._reductions = self.selection.reductions(self.recorder.history)
        self._over = self.selection.is_over(self.recorder.history)

    def _evaluate(self) -> None:
        begin = time.perf_counter()
        evaluation = self.benchmark.evaluate(self.model, device=self.config.device)
        self.recorder.record_evaluation(time.perf_counter() - begin)
        unlearned = {m.name for m in self.benchmark.metrics} - {
            m.name for m in learned_metrics(self.benchmark, self.config.tasks)
        }
        learned = {
            split: {name: value for name, value in values.items() if name not in unlearned}
            for split, values in evaluation.items()
        }
        rates = {
            "lr" if k == 0 else f"lr_{k}": float(group["lr"]) for k, group in enumerate(self.optimizer.param_groups)
        }
        epoch = -(-self.step // self.steps_per_epoch)
        self.recorder.end_interval(learned, epoch=epoch, step=self.step, rates=rates)
        self._look_back()


def _scaler(config: RunConfig) -> torch.amp.GradScaler | None:
    if config.training.precision != "fp16":
        return None
    return torch.amp.GradScaler(torch.device(config.device).type)
