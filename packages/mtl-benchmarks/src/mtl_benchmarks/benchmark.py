"""What a benchmark is: data, a model, losses and metrics. One file in ``benchmarks/`` each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn, optim

from mtl_benchmarks.batches import BatchSource, Probes
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.published import PublishedTable
from mtl_core import Problem

__all__ = ["Benchmark", "Training"]

Evaluation = Mapping[str, Mapping[str, float]]
"""split → metric name → value, as one evaluation gives it."""


@dataclass(frozen=True)
class Training:
    """The protocol by which a benchmark is trained unless a run says otherwise.

    Args:
        epochs: passes over the training set.
        batch_size: samples per step.
        lr: learning rate of Adam.
    """

    epochs: int
    batch_size: int
    lr: float


class Benchmark(ABC):
    """A multi-task problem with its data, model and metrics.

    The constructor's keyword arguments are the benchmark's options on the command line. Everything random in
    the data comes from such an option; everything random in a run comes from the run's seed, which the runner
    sets before it calls :meth:`build`.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[Metric, ...]]
    has_single_task_runs: ClassVar[bool] = True
    """Whether Δm against models that learn one task alone makes sense here."""
    teleport_options: ClassVar[Mapping[str, Any]] = {}
    """Options of a teleport that are other than its own defaults on this problem."""
    published: ClassVar[tuple[PublishedTable, ...]] = ()
    """The published tables of this very experiment, whose rows stand beside the runs'."""
    caveats: ClassVar[tuple[str, ...]] = ()
    """What a reader of its numbers has to know, one sentence each."""

    @property
    @abstractmethod
    def training(self) -> Training:
        """The default protocol."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A freshly initialised model, by torch's global generator."""

    @abstractmethod
    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """The losses of ``tasks``, a subset of :attr:`tasks`, on ``model``."""

    @abstractmethod
    def batches(self, *, batch_size: int, seed: int, device: str) -> BatchSource[Any]:
        """The training set."""

    @abstractmethod
    def evaluate(self, model: nn.Module, *, device: str) -> Evaluation:
        """Every metric on every evaluated split; leaves the model in the mode it found it in."""

    def probe_batches(self, batches: BatchSource[Any]) -> Iterable[Any] | None:
        """Batches on which a teleport holds the losses; None: on the step's own batch alone.

        The same batches at every teleport, drawn as from an epoch that is never trained on.
        """
        return Probes(batches)

    def optimizer(self, problem: Problem, *, lr: float) -> optim.Optimizer:
        """Adam over all trainable parameters."""
        return optim.Adam([*problem.shared, *problem.heads], lr=lr)

    def reported(self, history: Sequence[Evaluation]) -> dict[str, float]:
        """The values that stand for a run, from the evaluations after each epoch: the last test values."""
        return dict(history[-1]["test"])

    @property
    def main_metric(self) -> Metric:
        """What stands for the whole where there is no Δm: the last metric, which concerns no single task."""
        return self.metrics[-1]

    def cases(self) -> Sequence[Benchmark]:
        """The runs that make up the benchmark: itself, or one per start, split or the like."""
        return (self,)

    def case_options(self) -> dict[str, Any]:
        """Options that distinguish this case among :meth:`cases`."""
        return {}

    def trace(self, model: nn.Module) -> list[float] | None:
        """A few numbers to record at every step, such as the point on a path; usually none."""
        return None
