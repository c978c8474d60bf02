"""What a benchmark is: data, a model, losses and metrics. One file in ``benchmarks/`` each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from mtl_benchmarks.batches import BatchSource, Probes
from mtl_benchmarks.metrics import Baseline, Metric
from mtl_benchmarks.published import PublishedTable
from mtl_benchmarks.training import Training
from mtl_core import Problem

__all__ = ["Benchmark", "Evaluation"]

Evaluation = Mapping[str, Mapping[str, float]]
"""split → metric name → value, as one evaluation gives it."""


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
    model_arguments: ClassVar[frozenset[str]] = frozenset()
    """What the benchmark gives to its model, where its constructor takes a class of models as ``model``."""
    published: ClassVar[tuple[PublishedTable, ...]] = ()
    """The published tables of this very experiment, whose rows stand beside the runs'."""
    caveats: ClassVar[tuple[str, ...]] = ()
    """What a reader of its numbers has to know, one sentence each."""

    @property
    @abstractmethod
    def training(self) -> Training:
        """The default protocol."""

    @property
    def splits(self) -> tuple[str, ...]:
        """What :meth:`evaluate` evaluates: ``"test"``, and ``"validation"`` where a protocol may choose by it."""
        return ("test",)

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """Single-task values for a Δm that a protocol chooses by; none unless the protocol's paper has some."""
        return ()

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
