"""What an epoch costs through the engine of mtl_benchmarks, beside a loop written by hand that does the same work.

    python -m nox -s bench -- engine [--rounds 15] [--methods ls fairgrad]

Two benchmarks: digits (94 batches of 64) and scenes on a SegNet-like net (24 batches of 4). The loop by hand draws the
same batches, calls `mtl_core.step` with the same method, keeps the losses for their means, evaluates at the end of the
epoch and saves the states of model, optimiser, method and generators with `torch.save`; the engine does that and all it
does besides: learning rates, events, times, conflict statistics, tables, and checkpoints that are flushed to the disk.
Both take turns, epoch by epoch, in one process, with models and optimisers of their own; which goes first changes. A
ratio is the median over the rounds of the ratio in the same round: of CPU time, which other processes on the machine do
not add to, and of wall time, which has the waiting for the disk. The exit code is 1 if one of CPU time is above 1.03.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import nets
import torch
from torch import Tensor, nn

from mtl_benchmarks import Benchmark, Metric, OptimizerChoice, RunConfig, RunDirectory, Training
from mtl_benchmarks.batching.batches import Batches, Part
from mtl_benchmarks.batching.randomness import random_state, seeded
from mtl_benchmarks.batching.tally import Tally
from mtl_benchmarks.benchmark import Evaluation
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_benchmark, make_method
from mtl_benchmarks.runs.work import Work
from mtl_core import Problem, step

BOUND = 1.03


class Scenes(Benchmark):
    """Three dense predictions on made-up images with a SegNet-like net."""

    name: ClassVar[str] = "scenes"
    tasks: ClassVar[tuple[str, ...]] = ("first", "second", "third")
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(f"error_{task}", task, "", higher_is_better=False) for task in ("first", "second", "third")
    )

    def __init__(self) -> None:
        _, images, _ = nets.convolutional()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand((96, *images.shape[1:]), generator=generator)

    @property
    def training(self) -> Training:
        return Training(epochs=1000, batch_size=4, optimizer=OptimizerChoice("adam", {"lr": 1e-4}))

    def build(self) -> nn.Module:
        trunk, _, width = nets.convolutional()
        return nn.ModuleDict({"trunk": trunk, **{task: nn.Conv2d(width, 1, 1) for task in self.tasks}})

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        def losses(model: nn.Module, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            z = model.get_submodule("trunk")(batch)
            return {t: (model.get_submodule(t)(z) - k).square().mean() for k, t in enumerate(tasks)}, z

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=tasks)

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[Tensor]:
        return Batches(lambda rows, _: self.images[rows], len(self.images), batch_size=batch_size, seed=seed)

    @torch.no_grad()
    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        z = model.get_submodule("trunk")(self.images[:8])
        return {"test": {t: (model.get_submodule(t)(z) - k).square().sum() for k, t in enumerate(self.tasks)}}

    def metrics_from(self, tally: Tally) -> Evaluation:
        return {"test": {f"error_{t}": float(tally["test"][t]) for t in self.tasks}}  # type: ignore[arg-type]


class ByHand:
    """The loop that one writes without an engine."""

    def __init__(self, config: RunConfig, file: Path) -> None:
        self.config, self.file = config, file
        self.benchmark = make_benchmark(config.benchmark)
        self.model = self.benchmark.build()
        self.problem = self.benchmark.problem(self.model, tasks=config.tasks)
        self.optimizer = torch.optim.Adam([*self.problem.shared, *self.problem.heads], lr=config.training.lr)
        self.batches = self.benchmark.batches(batch_size=config.training.batch_size, seed=0, device="cpu")
        self.method = make_method(config.method, seed=0)
        self.number = 0
        self.history: list[Any] = []

    def epoch(self) -> None:
        losses = []
        for index in range(len(self.batches)):
            report = step(self.problem, self.batches.batch(self.number, index), self.optimizer, self.method)
            losses.append(report.losses)
        found = self.benchmark.evaluate(self.model, device="cpu")
        self.history.append((torch.stack(losses).double().mean(0).tolist(), found))
        self.number += 1
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random_state()}
        torch.save({**state, "history": self.history}, self.file)


class ByEngine:
    """The engine, with the files of a run, from one evaluation to the next."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.files = RunDirectory(path)
        self.held = ExitStack()
        self.held.enter_context(self.files.working(config.as_dict()))
        self.work = Work(config, self.files, lambda text: None)
        self.work._begin()

    def epoch(self) -> None:
        # What Work.complete does until the run is finished.
        self.work._advance(None, lambda now: None, None)
        self.work._show()


def measure(config: RunConfig, rounds: int) -> tuple[float, float, float]:
    """The median CPU time of an epoch by hand, in seconds, and median ratios of the engine to it: CPU and wall time."""
    with tempfile.TemporaryDirectory() as folder, seeded(0, threads=1):
        engine = ByEngine(config, Path(folder) / "run")
        runs = {"hand": ByHand(config, Path(folder) / "state.pt").epoch, "engine": engine.epoch}
        for each in runs.values():
            each()
        cpu: dict[str, list[float]] = {name: [] for name in runs}
        wall: dict[str, list[float]] = {name: [] for name in runs}
        for k in range(rounds):
            for name in sorted(runs, reverse=bool(k % 2)):
                begin = time.process_time(), time.perf_counter()
                runs[name]()
                cpu[name].append(time.process_time() - begin[0])
                wall[name].append(time.perf_counter() - begin[1])
        engine.held.close()
    ratios = [
        statistics.median(e / h for h, e in zip(times["hand"], times["engine"], strict=True)) for times in (cpu, wall)
    ]
    return statistics.median(cpu["hand"]), ratios[0], ratios[1]


def parts(config: RunConfig) -> dict[str, float]:
    """Least CPU times in milliseconds of what the engine does besides the work of a step, and of an epoch by hand."""
    with tempfile.TemporaryDirectory() as folder, seeded(0, threads=1):
        hand = ByHand(config, Path(folder) / "state.pt")
        engine = ByEngine(config, Path(folder) / "run")
        for each in (hand, engine):
            each.epoch()
        trainer = engine.work.trainer
        batch = trainer.batches.batch(0, 0)
        report = step(trainer.problem, batch, trainer.optimizer, trainer.method)

        def steps() -> None:
            with patch("mtl_benchmarks.engine.trainer.step", lambda *_, **__: report):
                for trainer.step in range(1, 51):
                    trainer.take_step()

        with patch.object(trainer.batches, "batch", lambda *_: batch):
            found = {"each step": _least(steps) / 50}
        found |= {"checkpoint": _least(engine.work._save), "tables": _least(engine.work._show)}
        engine.held.close()
        return {**found, "epoch by hand": _least(hand.epoch, 3)}


def _least(work: Callable[[], None], times: int = 10) -> float:
    found = []
    for _ in range(times):
        begin = time.process_time()
        work()
        found.append(1000 * (time.process_time() - begin))
    return min(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", nargs="+", default=["ls", "fairgrad"])
    parser.add_argument("--parts", action="store_true", help="what the engine adds, piece by piece, on digits")
    arguments = parser.parse_args()
    if arguments.parts:
        print(parts(RunConfig.resolve("digits", "fairgrad", epochs=1000)))
        return 0
    worst = 0.0
    print("| benchmark | method | by hand, CPU time | engine, CPU time | engine, wall time |\n|---|---|---|---|---|")
    for benchmark in (Choice("digits"), Choice("engine:Scenes")):
        for method in arguments.methods:
            config = RunConfig.resolve(benchmark, method, epochs=1000)
            seconds, ratio, wall = measure(config, arguments.rounds)
            worst = max(worst, ratio)
            name = benchmark.name.rpartition(":")[2].lower()
            print(f"| {name} | {method} | {1000 * seconds:.0f} ms | {ratio:.3f} | {wall:.3f} |", flush=True)
    return int(worst > BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
