"""What a benchmark is: data, a model, losses and metrics. One file in ``benchmarks/`` each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from mtl_benchmarks.batching.batches import BatchSource, Part, Probes
from mtl_benchmarks.batching.tally import Tallies
from mtl_benchmarks.metrics import Baseline, Metric
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.published import PublishedTable
from mtl_core import InvalidInputError, Problem

if TYPE_CHECKING:  # its import takes a second, and only a sharded model needs it
    from torch.distributed.device_mesh import DeviceMesh

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
    offered_to_model: ClassVar[frozenset[str]] = frozenset()
    """What it gives besides to a class of models whose constructor has it."""

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

    @property
    def published(self) -> tuple[PublishedTable, ...]:
        """The published tables of this very experiment, whose rows stand beside the runs'; may be a class attribute."""
        return ()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of its numbers has to know, one sentence each; may be a class attribute."""
        return ()

    def files(self) -> Mapping[str, Sequence[Path]]:
        """Files and folders that its numbers come from, by what messages are to call them; none need exist.

        A digest of them is recorded with a run, and a run that goes on, or is complete, says where they have changed
        since. Folders and files that its options name are among them by themselves, whole: ``root``, those whose type
        is a path, and texts that are names of files. An entry under the option's name takes their place.
        """
        return {}

    def prepare(self, say: Callable[[str], None]) -> None:
        """See to what has to be there before a run begins, which has not touched its directory yet; by default nothing.

        Folders and files that every run reads are looked for, not read: where the default protocol depends on what
        lies in a folder, a run of half a folder would leave the directory of another protocol behind. What is made
        once on a machine and kept is made here.

        Args:
            say: called with a line now and then where that takes long.

        Raises:
            InvalidInputError: something is missing; all of it is named, and what to do.
        """
        return None

    @abstractmethod
    def build(self) -> nn.Module:
        """A freshly initialised model, by torch's global generator."""

    @abstractmethod
    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """The losses of ``tasks``, a subset of :attr:`tasks`, on ``model``."""

    @abstractmethod
    def batches(self, *, batch_size: int, seed: int, device: str) -> BatchSource[Any]:
        """The training set."""

    def evaluate(self, model: nn.Module, *, device: str) -> Evaluation:
        """Every metric on every evaluated split; leaves the model in the mode it found it in.

        A benchmark has this, or ``tally`` and ``metrics_from`` (:class:`~mtl_benchmarks.batching.tally.Tallies`), which
        several processes can divide.

        Raises:
            InvalidInputError: it has neither.
        """
        if not isinstance(self, Tallies):
            raise InvalidInputError(
                f"benchmark {self.name!r} must have `evaluate`, or `tally` and `metrics_from`, got neither."
            )
        return self.metrics_from(self.tally(model, device=device, part=Part()))

    def evaluate_tasks(self, model: nn.Module, tasks: Sequence[str], *, device: str) -> Evaluation:
        """As :meth:`evaluate`, where only the metrics of ``tasks`` are wanted: those that the run trains.

        For a benchmark whose evaluation is dear enough to leave the others out; the rest evaluate all.
        """
        return self.evaluate(model, device=device)

    def remarks(self) -> Sequence[str]:
        """What beside :attr:`caveats` only its data tell of its numbers, one sentence each; collects nothing."""
        return ()

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Spread the model's parameters over the processes of a mesh, where a protocol asks for it.

        Every submodule directly below the model, and below containers, becomes a unit of ``fully_shard``; the model
        itself does not, because losses often call its submodules one by one. A unit is whole during its own forward
        and backward pass.

        Args:
            model: freshly built.
            mesh: of one dimension.
        """
        from torch.distributed.fsdp import fully_shard

        for child in model.children():
            if isinstance(child, nn.ModuleDict | nn.ModuleList):
                self.shard(child, mesh)
            elif any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)

    def probe_batches(self, batches: BatchSource[Any]) -> Iterable[Any] | None:
        """Batches on which a teleport holds the losses; None: on the step's own batch alone.

        The same batches at every teleport, drawn as from an epoch that is never trained on.
        """
        return Probes(batches)

    def cases(self) -> Sequence[Benchmark]:
        """The runs that make up the benchmark: itself, or one per start, split or the like."""
        return (self,)

    def case_options(self) -> dict[str, Any]:
        """Options that distinguish this case among :meth:`cases`."""
        return {}

    def trace(self, model: nn.Module) -> list[float] | None:
        """A few numbers to record at every step, such as the point on a path; usually none."""
        return None
