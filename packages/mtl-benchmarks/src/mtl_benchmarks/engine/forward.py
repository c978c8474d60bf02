"""The losses of a run: under autocast, weighted by the share of a batch, with the time they take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtl_benchmarks.batching.batches import Share
from mtl_benchmarks.protocol.training import Precision
from mtl_core import Problem, TaskLosses
from mtl_core.extension import ProblemView

__all__ = ["RunProblem"]

_AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class RunProblem(ProblemView):
    """A benchmark's problem as a run evaluates it.

    Autocast is around the forward pass alone: Gramians and directions are computed in the gradients' own precision.

    Args:
        problem: the benchmark's.
        device: where it computes.
        precision: of forward passes.
    """

    __slots__ = ("_autocast", "seconds")

    def __init__(self, problem: Problem, *, device: str, precision: Precision) -> None:
        super().__init__(problem, lambda losses: losses)
        dtype = _AUTOCAST.get(precision)
        self._autocast = nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)
        self.seconds = 0.0
        """Time spent in forward passes so far, as this process saw it: an accelerator may not have finished."""

    def losses(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """The losses of a batch, or of a share of one, times its weight."""
        begin = time.perf_counter()
        # The step takes plain means over processes and micro-batches; parts of unequal size are weighed for it here.
        weight = 1.0
        if isinstance(batch, Share):
            batch, weight = batch.batch, batch.weight
        with self._autocast:
            found = self._under.losses(batch, parameters=parameters)
        if weight != 1.0:
            outputs = found.outputs

            scaled = outputs * weight if isinstance(outputs, Tensor) else tuple(loss * weight for loss in outputs)
            found = replace(found, outputs=scaled)
        self.seconds += time.perf_counter() - begin
        return found
