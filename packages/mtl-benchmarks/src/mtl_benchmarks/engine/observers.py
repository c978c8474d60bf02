"""Watching a run: who wants to see its steps and evaluations, without a way to change its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_core import StepReport

__all__ = ["EvaluationSeen", "Observer", "ObserverError", "RunStart", "StepSeen"]


class ObserverError(RuntimeError):
    """An observer of a run raised an error. The run can be taken up from its last checkpoint, without it or mended."""


@dataclass(frozen=True)
class RunStart:
    """What an observer is told before anything else.

    Attributes:
        config: of the run.
        directory: the run's own; logs belong into its folder ``log``.
        step: steps that were taken before this process took its first; more than 0 after a restart.
    """

    config: RunConfig
    directory: Path
    step: int


@dataclass(frozen=True)
class StepSeen:
    """A step as an observer sees it. Reading a value waits for the device; nothing else does.

    Attributes:
        step: steps taken, this one included.
        epoch: the current epoch, from 0.
    """

    step: int
    epoch: int
    _report: StepReport

    @cached_property
    def losses(self) -> Mapping[str, float]:
        """Task → loss before the update; NaN for an absent task."""
        return self._named(self._report.losses)

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """Task → weight, the mean over groups of parameters where each has its own; empty without weights."""
        found = self._report.weights
        return {} if found is None else self._named(found.mean(0) if found.ndim > 1 else found)

    @cached_property
    def norms(self) -> Mapping[str, float]:
        """Task → norm of its gradient in the shared parameters; empty where the step had no Gramian."""
        found = self._report.gramian
        return {} if found is None else self._named(found.diagonal().clamp(min=0).sqrt())

    def _named(self, values: Tensor) -> Mapping[str, float]:
        return MappingProxyType(dict(zip(self._report.tasks, values.detach().double().cpu().tolist(), strict=True)))


@dataclass(frozen=True)
class EvaluationSeen:
    """An evaluation as an observer sees it.

    Attributes:
        step: steps taken.
        epoch: in which it stands, from 1.
        values: split → metric → value; the split ``train`` has the means over the steps since the evaluation before:
            losses, weights, norms and cosines per task, conflict, learning rates.
        seconds: what the time since the evaluation before was spent on.
    """

    step: int
    epoch: int
    values: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]


class Observer(Protocol):
    """Sees a run. Inherit from it to see only a part: what is not overridden does nothing.

    It is handed numbers, never the run's own objects, and random generators, the gradient mode, the default dtype and
    torch's threads are afterwards what they were: a run gives the same numbers with any observer and with none. An
    error in one ends the run and says which observer it was.
    """

    def ready(self, directory: Path) -> None:
        """Before anything is made: whatever would keep it from seeing the run in this directory is raised here.

        A command asks the observers of all its runs before the first of them begins. Nothing is to be written.
        """

    def state_dict(self) -> Mapping[str, Any]:
        """What it has to know after a restart: plain data as JSON has it, which becomes part of each checkpoint.

        What it has written until now must last when this returns. Asked for again when the run has ended.
        """
        return {}

    def look_back(self, directory: Path, state: Mapping[str, Any] | None) -> str:
        """Before anything is trained, where there is a checkpoint: whatever it cannot go on from is raised here.

        Nothing is to be written. A complete run, which is only read, asks this too, and nothing else.

        Args:
            directory: of the run.
            state: what ``state_dict`` gave at the checkpoint; None if no observer of this class saw the run then. Where
                it was left out for a part of the run, it is that of the last checkpoint which it saw.

        Returns:
            what a person should know of it, without a full stop; empty where there is nothing to say.
        """
        return ""

    def start(self, run: RunStart) -> None:
        """Before the first step of this process. After a restart, what lies behind ``run.step`` will come again."""

    def step(self, seen: StepSeen) -> None:
        """After a step."""

    def evaluation(self, seen: EvaluationSeen) -> None:
        """After an evaluation, at the latest when the step that follows it has been taken."""

    def finish(self) -> None:
        """After the last evaluation; the run's result is written when this has returned."""

    def broken_off(self) -> None:
        """In place of ``finish``, where an error or Ctrl-C ends the run; what it raises is of no account."""
