"""What the first evaluation of a run would raise, looked for before its first epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.tally import Tallies
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.engine.evaluating import checked_evaluation
from mtl_core import InvalidInputError

__all__ = ["FirstEvaluations"]

_OF_VALUES = (ArithmeticError, ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What an untrained model may bring about in a metric, such as one class or a constant, and a trained one may not."""


@dataclass(frozen=True)
class _First(Part):
    """The part of a split that is its first sample, or its first batch."""

    def bounds(self, n: int) -> tuple[int, int]:
        return 0, min(n, 1)


class FirstEvaluations:
    """Evaluates a benchmark's models as far as it takes to see that it can be done; nothing of it is kept.

    Where a benchmark adds up sums, one sample of each split goes through the model and the metrics. What that raises
    may come of there being one only, so that the whole evaluation then has the word. A benchmark that evaluates in one
    go does so once, unless it is one of this package, such as of the rollouts in ``mt10``. What values alone can bring
    about is for the run to tell.

    Args:
        benchmark: whose evaluation it is.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._seen: set[tuple[str, ...]] = set()
        self._found: Any = None
        kind = type(benchmark)
        # Not by the instance: what a class has of its own is what an evaluation of it calls.
        self._per_task = kind.evaluate_tasks is not Benchmark.evaluate_tasks
        self._in_parts = isinstance(benchmark, Tallies) and not self._per_task and kind.evaluate is Benchmark.evaluate

    def look(self, model: nn.Module, tasks: Sequence[str], *, device: str, alone: bool) -> None:
        """Evaluate, unless that was done for these tasks.

        Args:
            model: of the benchmark.
            tasks: those that are trained.
            device: of the model.
            alone: whether one process trains; of several, a whole evaluation may wait for the others.

        Raises:
            InvalidInputError: the evaluation gives something else than the benchmark declares.
            Exception: what the evaluation raised.
        """
        if tuple(tasks) in self._seen:
            return
        self._seen.add(tuple(tasks))
        try:
            if not (self._in_parts and self._does_one(model, tasks, device)) and alone:
                self._evaluate(model, tasks, device)
        except InvalidInputError:
            raise
        except _OF_VALUES:
            pass

    def _does_one(self, model: nn.Module, tasks: Sequence[str], device: str) -> bool:
        benchmark = self._benchmark
        assert isinstance(benchmark, Tallies)
        try:
            found = benchmark.metrics_from(benchmark.tally(model, device=device, part=_First()))
            checked_evaluation(self._benchmark, tasks, found)
        except Exception:  # noqa: BLE001 - the whole evaluation raises it again if it is not of one sample alone
            return False
        return True

    def _evaluate(self, model: nn.Module, tasks: Sequence[str], device: str) -> None:
        if not self._in_parts and type(self._benchmark).__module__.startswith("mtl_benchmarks."):
            return
        if self._found is None or self._per_task:
            self._found = self._benchmark.evaluate_tasks(model, tasks, device=device)
        checked_evaluation(self._benchmark, tasks, self._found)
