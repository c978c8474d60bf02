"""The moving parts of a run: model, optimiser, method, data and what is recorded of them, and their state."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn, optim

from mtl_benchmarks.batching.batches import BatchSource, mixed_seed
from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.batching.randomness import random_state, set_random_state
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.configuration.selection import Selection, learned_values
from mtl_benchmarks.engine.evaluating import checked_evaluation, evaluate_together
from mtl_benchmarks.engine.parts import make_parts
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.recorder import Recorder
from mtl_benchmarks.engine.sharding import load_whole_state, whole_state
from mtl_benchmarks.protocol.schedules import Place
from mtl_benchmarks.ranks import Ranks, current_ranks
from mtl_core import InvalidInputError, NoLossesError, Note, StepReport, step
from mtl_core.extension import CountsEpochs, Draws, Remembers, offers

__all__ = ["Trainer"]


class Trainer:
    """What one run trains, and where it stands.

    Args:
        config: the resolved configuration.
        loading: how batches are read ahead, where they are read sample by sample.
        ranks: the processes that train together; None: those of torch's default group, or this one alone. What the
            first process calls, all of them do: the others are in :func:`mtl_benchmarks.engine.following.follow`.

    Attributes:
        step: steps taken.
        seconds: time spent in training steps, without data, evaluations and checkpoints.
    """

    def __init__(self, config: RunConfig, *, loading: Loading = Loading(), ranks: Ranks | None = None) -> None:
        self.ranks = current_ranks() if ranks is None else ranks
        # The constructor is collective, too: all processes make their parts together, or none does.
        self.ranks.say("make")
        with self.ranks.together():
            self._make(config, loading)

    def _make(self, config: RunConfig, loading: Loading) -> None:
        self.config = config
        self.training = config.training
        self.device = self.ranks.device(config.device)
        made = make_parts(config, make_benchmark(config.benchmark), ranks=self.ranks, device=self.device)
        self.benchmark: Benchmark = made.benchmark
        self.model: nn.Module = made.model
        self._is_sharded = self.training.sharding == "fsdp"
        self.problem = made.problem
        self.optimizer: optim.Optimizer = made.optimizer
        # Before a checkpoint is loaded, which has the rates of its moment: schedules start from these.
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.batches: BatchSource[Any] = made.batches
        self.method = made.method
        self._step_batches = made.step_batches
        self._step_batches.open(loading)
        self.scaler = made.scaler
        self._options = {**made.options, "group": self.ranks.group}
        self.selection = Selection(self.benchmark, config.tasks, self.training)
        self.recorder = Recorder(config.tasks)
        self._epoch_length = len(self.batches)
        self._length = self.training.total_steps(self._epoch_length)
        self.step = 0
        self.seconds = 0.0
        self._reductions = 0
        self._over = False
        # Imports that making the parts brings about draw from Python's generator (rich does), and only the first time
        # in a process: without this, runs in one process would differ from runs in their own.
        random.seed(config.seed)
        if self.ranks.size > 1:
            # What a model draws in its forward passes, such as dropout, must differ between parts of a batch. Methods
            # and teleports have generators of their own, which stay alike.
            torch.manual_seed(mixed_seed(config.seed, self.ranks.rank, self.ranks.size))

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a pass over the training set."""
        return self._epoch_length

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, unless it ends early."""
        return self._length

    @property
    def is_finished(self) -> bool:
        """Whether the last evaluation is done."""
        return self._over or (self.step >= self.total_steps and self._is_evaluated)

    @property
    def _is_evaluated(self) -> bool:
        return bool(self.recorder.steps) and self.recorder.steps[-1] == self.step

    def state_dict(self) -> dict[str, Any]:
        """Everything a restart needs: plain data and tensors."""
        self.ranks.say("state")
        return self.gather_state()

    def gather_state(self) -> dict[str, Any]:
        """The state, with what each process has of it; all of them call this together."""
        with self.ranks.together():
            model, optimizer = whole_state(self.model, self.optimizer, sharded=self._is_sharded)
            # Of each process: what a model draws differs between them.
            randoms = self.ranks.gather(random_state())
        return {
            "model": model,
            "optimizer": optimizer,
            "method": self._method_state(),
            "benchmark": self.benchmark.state_dict() if offers(self.benchmark, Remembers) else None,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "recorder": self.recorder.state_dict(),
            "random": randoms[0] if self.ranks.size == 1 else randoms,
            "ranks": self.ranks.size,
            "step": self.step,
            "seconds": self.seconds,
        }

    def _method_state(self) -> dict[str, Any] | None:
        if offers(self.method, Remembers):
            return self.method.state_dict()
        # As a wrapper does it for the method inside: of one that draws and says no more, its generator is saved.
        return {"generator": self.method.generator.get_state()} if offers(self.method, Draws) else None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            InvalidInputError: it is the state of another number of processes.
        """
        self.ranks.say("load")
        self.spread_state(state)

    def spread_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from the state that the first process has; all of them call this together."""
        found = self.ranks.share(state)
        with self.ranks.together():
            self._load(found)

    def _load(self, state: Mapping[str, Any]) -> None:
        if state["ranks"] != self.ranks.size:
            raise InvalidInputError(
                f"the run must go on with as many processes as it began with, {state['ranks']}, got {self.ranks.size}."
            )
        load_whole_state(self.model, self.optimizer, state["model"], state["optimizer"], sharded=self._is_sharded)
        if state["method"] is not None and offers(self.method, Remembers):
            self.method.load_state_dict(state["method"])
        elif state["method"] is not None:
            self.method.generator.set_state(state["method"]["generator"])
        if state.get("benchmark") is not None and offers(self.benchmark, Remembers):
            self.benchmark.load_state_dict(state["benchmark"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.recorder.load_state_dict(state["recorder"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self._look_back()
        # Last: what comes before may draw.
        set_random_state(state["random"] if self.ranks.size == 1 else state["random"][self.ranks.rank])

    def advance(
        self,
        *,
        save: Callable[[], None],
        every: int | None,
        seen: Callable[[Progress], None],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """The steps up to the next evaluation, and the evaluation.

        Args:
            save: writes a checkpoint.
            every: steps between the checkpoints that are written on the way; None: none.
            seen: called after every step, before a checkpoint from which it would not come again.
            progress: called after every step, and a checkpoint that is due there.
        """
        target = self._next_evaluation()
        while self.step < target:
            self.ranks.say("step")
            self.take_step()
            now = self.progress
            seen(now)
            # Not at an evaluation, after which there is a checkpoint of its own.
            if every is not None and self.step % every == 0 and self.step < target:
                save()
            if progress is not None:
                progress(now)
        self.ranks.say("evaluate")
        self.evaluate()

    @property
    def progress(self) -> Progress:
        """Where the run stands after at least one step."""
        return Progress(self.step, self.total_steps, (self.step - 1) // self.steps_per_epoch, self.recorder)

    def close(self) -> None:
        """End the processes that read data."""
        self._step_batches.close()

    def reported(self) -> dict[str, float]:
        """The values that stand for the run, as the protocol says."""
        return self.selection.reported(self.recorder.history)

    def _next_evaluation(self) -> int:
        every = self.training.evaluate_every.steps(self.steps_per_epoch)
        # A run that was broken off between its last step and the evaluation has no step left to take before it.
        due = self.step if self.step and self.step % every == 0 and not self._is_evaluated else self.step + 1
        # The next multiple, or the end: the last step is evaluated whether or not it is one.
        return min(-(-due // every) * every, self.total_steps)

    def take_step(self) -> None:
        """One step; all processes call this together."""
        epoch, index = divmod(self.step, self._epoch_length)
        if index == 0 and offers(self.method, CountsEpochs):
            self.method.start_epoch(epoch)
        begin = time.perf_counter()
        with self.ranks.together():  # before the step: a process without a batch must not leave the others in it
            batch = self._step_batches.batch(epoch, index)
        loaded = time.perf_counter()
        # In every step, from its number: nothing of a schedule has to be saved.
        self._set_rates()
        forward = self.problem.seconds
        with self.ranks.parting():
            report = self._step(batch)
        end = time.perf_counter()
        self.seconds += end - loaded
        self._record(report, epoch, data=loaded - begin, forward=self.problem.seconds - forward, whole=end - loaded)
        self.step += 1

    def _step(self, batch: Any) -> StepReport:
        try:
            return step(self.problem, batch, self.optimizer, self.method, **self._options)
        except NoLossesError:
            # Pictures without a valid pixel for the only task there is. The step has been undone and is passed over:
            # to end a run of days for one batch would help nobody.
            losses = torch.full((self.problem.n_tasks,), float("nan"), device=self.device)
            return StepReport(losses, None, None, self.problem.tasks, (Note("no task has a loss: no update is made"),))

    def _record(self, report: StepReport, epoch: int, *, data: float, forward: float, whole: float) -> None:
        self.recorder.record_step(report, self.benchmark.trace(self.model), epoch=epoch, step=self.step)
        teleports = 0.0
        for event in report.events:
            teleports += float(event.as_dict().get("seconds", 0.0))
        self.recorder.record_times(data=data, forward=forward, whole=whole, teleports=teleports)

    def _set_rates(self) -> None:
        place = Place(self.step, self._length, self._epoch_length, self._reductions)
        for group, base in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = self.training.schedule.rate(base, place)

    def _look_back(self) -> None:
        """What follows from the evaluations so far: it is worked out from them, and not stored."""
        self._reductions = self.selection.reductions(self.recorder.history)
        self._over = self.selection.is_over(self.recorder.history)

    def evaluate(self) -> None:
        """Evaluate, and keep what came of it; all processes call this together.

        Raises:
            InvalidInputError: the benchmark gave something else than the metrics and splits that it declares.
        """
        begin = time.perf_counter()
        tasks = self.config.tasks
        evaluated = evaluate_together(
            self.benchmark, self.model, tasks, self.ranks, device=self.device, sharded=self._is_sharded
        )
        found = checked_evaluation(self.benchmark, tasks, evaluated)
        self.recorder.record_evaluation(time.perf_counter() - begin)
        rates = {
            "lr" if k == 0 else f"lr_{k}": float(group["lr"]) for k, group in enumerate(self.optimizer.param_groups)
        }
        # Counted from 1: the epoch in which the last step lies, which an evaluation at its end still belongs to.
        epoch = -(-self.step // self.steps_per_epoch)
        learned = learned_values(self.benchmark, tasks, found)
        self.recorder.end_interval(learned, epoch=epoch, step=self.step, rates=rates)
        self._look_back()
