"""The evaluation of a model by all processes of a run."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.loading import on_device
from mtl_benchmarks.batching.tally import Tallies, combined
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.configuration.selection import learned_metrics
from mtl_benchmarks.engine.sharding import reshard
from mtl_benchmarks.ranks import Ranks
from mtl_core import InvalidInputError

__all__ = ["checked_evaluation", "evaluate_together"]


def evaluate_together(
    benchmark: Benchmark, model: nn.Module, tasks: Sequence[str], ranks: Ranks, *, device: str, sharded: bool
) -> Evaluation:
    """Every metric on every evaluated split, the same on all processes; all of them call this together.

    The processes divide the splits where the benchmark has sums of them to add up, and otherwise each evaluates the
    whole. So do they where the model is sharded: each forward pass is then one of all processes, and parts of unequal
    size could need unequally many.

    Args:
        benchmark: the benchmark.
        model: its model, as this process has it.
        tasks: those that are trained.
        ranks: the processes.
        device: of this process.
        sharded: whether the model's parameters are spread over the processes.
    """
    with ranks.together():
        # Those of each process are from its own parts of the batches.
        ranks.broadcast_buffers(model)
    if ranks.size == 1 or sharded or not isinstance(benchmark, Tallies):
        with ranks.together():
            found = benchmark.evaluate_tasks(model, tasks, device=device)
        if sharded:
            reshard(model)
        return found
    with ranks.together():
        own = benchmark.tally(model, device=device, part=Part(ranks.rank, ranks.size))
        # What is gathered is pickled; from a GPU each process would get tensors of another one's.
        on_host = on_device(own, torch.device("cpu"))
    # Added up in the order of the ranks on each of them, so that all have the same bits.
    return benchmark.metrics_from(combined(ranks.gather(on_host)))


def checked_evaluation(benchmark: Benchmark, tasks: Sequence[str], found: Any) -> dict[str, dict[str, float]]:
    """What a benchmark's evaluation gave, as plain numbers: those of numpy and tensors without dimensions become such.

    Metrics beyond those that it declares are kept.

    Args:
        benchmark: whose ``metrics`` and ``splits`` must all be there, but for metrics of tasks that are not trained.
        tasks: those that are trained.
        found: what it gave.

    Raises:
        InvalidInputError: a split or metric is missing, or a value is no number.
    """
    rule = f"the evaluation of benchmark {benchmark.name!r} must be a mapping from splits to metrics to numbers"
    if not isinstance(found, Mapping):
        raise InvalidInputError(f"{rule}, got {found!r}.")
    names = [metric.name for metric in learned_metrics(benchmark, tasks)]
    values: dict[str, dict[str, float]] = {}
    for split, row in found.items():
        if not isinstance(row, Mapping):
            raise InvalidInputError(f"{rule}, got {row!r} for the split {split!r}.")
        values[split] = {name: _number(value, rule, f"{name!r} of {split!r}") for name, value in row.items()}
    for split in benchmark.splits:
        missing = [name for name in names if name not in values.get(split, ())]
        if missing:
            got = f"{', '.join(values[split]) or 'none'} of {split!r}" if split in values else f"splits {list(values)}"
            raise InvalidInputError(
                f"the evaluation of benchmark {benchmark.name!r} must hold every metric that it declares on each of "
                f"its `splits`, got {got}, without {', '.join(missing)} of {split!r}. Let `evaluate` give these, or "
                "take them out of `metrics` or `splits`."
            )
    return values


def _number(value: Any, rule: str, place: str) -> float:
    if isinstance(value, Tensor | numpy.ndarray) and value.ndim == 0:
        value = value.item()
    # Numpy's scalars are real numbers to Python, too.
    if not isinstance(value, numbers.Real):
        raise InvalidInputError(f"{rule}, got {value!r} for {place}.")
    return float(value)
