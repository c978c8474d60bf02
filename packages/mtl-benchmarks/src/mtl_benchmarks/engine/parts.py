"""What a run is made of: model, problem, optimiser, data and method, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from mtl_benchmarks.batching.batches import BatchSource, OwnPart, Part
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.components.sizes import within_memory
from mtl_benchmarks.configuration.making import make_method
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.forward import RunProblem
from mtl_benchmarks.engine.sharding import shard
from mtl_benchmarks.engine.step_batches import StepBatches
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.ranks import Ranks

__all__ = ["RunParts", "make_parts"]


@dataclass(frozen=True)
class RunParts:
    """The parts of a run.

    Attributes:
        benchmark: the problem.
        model: freshly drawn, on its device.
        problem: its losses, in the protocol's precision.
        optimizer: of all parameters.
        batches: of the protocol.
        method: inside its teleport if it has one.
        step_batches: what each step is given.
        scaler: of the losses; None but in half precision.
        options: of ``mtl_core.step``, without the process group.
    """

    benchmark: Benchmark
    model: nn.Module
    problem: RunProblem
    optimizer: optim.Optimizer
    batches: BatchSource[Any]
    method: Any
    step_batches: StepBatches
    scaler: torch.amp.GradScaler | None
    options: Mapping[str, Any]


def make_parts(config: RunConfig, benchmark: Benchmark, *, ranks: Ranks, device: str) -> RunParts:
    """Make the parts of a run; draws from the global generators, which the caller has seeded.

    Args:
        config: the resolved configuration.
        benchmark: the one it names.
        ranks: the processes that train together.
        device: of this process.

    Raises:
        InvalidInputError: the parts do not fit each other, or something is wrong with the data.
    """
    training = config.training
    with within_memory(f"the network of benchmark {config.benchmark.name!r}"):
        model = benchmark.build().to(device)
    if training.sharding == "fsdp" and ranks.group is not None:
        shard(benchmark, model, ranks, device)
    problem = RunProblem(benchmark.problem(model, tasks=config.tasks), device=device, precision=training.precision)
    optimizer: optim.Optimizer = training.optimizer.build(problem)
    with within_memory(f"the data of benchmark {config.benchmark.name!r}"):
        batches: BatchSource[Any] = benchmark.batches(batch_size=training.batch_size, seed=config.seed, device=device)
    probes: BatchSource[Any] = batches if ranks.size == 1 else OwnPart(batches, Part(ranks.rank, ranks.size))
    method = make_method(
        config.method,
        config.teleport,
        seed=config.seed,
        device=device,
        probe_batches=benchmark.probe_batches(probes),
    )
    scaler = _scaler(training, device)
    options: dict[str, Any] = {"heads": config.heads, "scaler": scaler, "measure_progress": True}
    if training.clip is not None:
        options |= training.clip.for_step()
    step_batches = StepBatches(batches, training, ranks, method)
    return RunParts(benchmark, model, problem, optimizer, batches, method, step_batches, scaler, options)


def _scaler(training: Training, device: str) -> torch.amp.GradScaler | None:
    if training.precision != "fp16":
        return None
    return torch.amp.GradScaler(torch.device(device).type)
