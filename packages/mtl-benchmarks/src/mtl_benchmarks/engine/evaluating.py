"""The evaluation of a model by all processes of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.loading import on_device
from mtl_benchmarks.batching.tally import Tallies, combined
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.engine.sharding import reshard
from mtl_benchmarks.ranks import Ranks

__all__ = ["evaluate_together"]


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
