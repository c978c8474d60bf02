"""What stands between a run and its observers: it tells them, asks them, and lets them change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from mtl_benchmarks.batching.randomness import random_state, set_random_state
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.observers import EvaluationSeen, Observer, ObserverError, RunStart, StepSeen
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.storage.files import canonical, parsed
from mtl_core import InvalidInputError, MissingExtraError
from mtl_core.extension import offers

__all__ = ["Watching", "make_ready"]


class _GetsReady(Protocol):
    """The part of an observer that is asked before its run."""

    def ready(self, directory: Path) -> None:
        """As ``Observer.ready``."""


class _Remembers(Protocol):
    """The part of an observer that goes into checkpoints."""

    def state_dict(self) -> Mapping[str, Any]:
        """As ``Observer.state_dict``."""

    def look_back(self, directory: Path, state: Mapping[str, Any] | None) -> str:
        """As ``Observer.look_back``."""


def make_ready(observers: Sequence[Observer], directory: Path) -> None:
    """Ask observers whether they could see a run.

    Args:
        observers: those that it will have.
        directory: of the run; it need not exist.

    Raises:
        InvalidInputError: one could not, in its own words.
        ObserverError: one raised something else.
    """
    for observer in observers:
        # What has the shape of an observer and is no subclass may know no such question.
        if not offers(observer, _GetsReady):
            continue
        with _asked(observer):
            observer.ready(directory)


@contextmanager
def _asked(observer: Observer) -> Iterator[None]:
    """What an observer raises before a run, in its own words where they are meant for people."""
    with _unchanged():
        try:
            yield
        except (InvalidInputError, MissingExtraError):
            raise
        except Exception as error:
            name = type(observer).__name__
            raise ObserverError(
                f"observer {name} must be ready before a run, got {type(error).__name__}: {error}. Nothing was "
                "begun; start the run without it, or mended."
            ) from error


class Watching:
    """Stands between a run and its observers.

    Args:
        observers: in the order in which they are called.
        config: of the run.
        directory: the run's own.
    """

    def __init__(self, observers: Sequence[Observer], config: RunConfig, directory: Path) -> None:
        self._observers = tuple(observers)
        self._config = config
        self._directory = directory
        self._has_started = False
        self._last: Progress | None = None
        self._told = 0
        self._earlier: Mapping[str, Sequence[Mapping[str, Any]]] = {}

    @property
    def has_begun(self) -> bool:
        """Whether anything was told."""
        return self._has_started

    def look_back(self, states: Mapping[str, Sequence[Mapping[str, Any]]], say: Callable[[str], None]) -> None:
        """Ask them whether they can go on from a checkpoint.

        Args:
            states: those in it, by the names of the observers' classes.
            say: called with what a person should know.

        Raises:
            InvalidInputError: one cannot, in its own words.
            ObserverError: one raised something else.
        """
        self._earlier = states
        for name, k, observer in self._remembering():
            known = states.get(name, ())
            with _asked(observer):
                note = observer.look_back(self._directory, known[k] if k < len(known) else None)
            if note:
                say(note)

    def state_dict(self) -> dict[str, list[Mapping[str, Any]]]:
        """What they have to know after a restart; of those that are left out this time, what was known before."""
        found = {name: list(states) for name, states in self._earlier.items()}
        # Where no step was taken they have not begun, and have nothing to say that is not known.
        for name, k, observer in self._remembering() if self._has_started else ():
            states: list[Mapping[str, Any]] = []
            # Through JSON, so that a restart and a complete run hand back the same.
            self._tell(
                "a checkpoint",
                lambda each, to=states: to.append(parsed(canonical(dict(each.state_dict())))),  # type: ignore[misc]
                only=observer,
            )
            found.setdefault(name, [])[k : k + 1] = states
        return found

    def _remembering(self) -> Iterator[tuple[str, int, Observer]]:
        """Those that take part in checkpoints: name of the class, position among those of it, observer."""
        counted: Counter[str] = Counter()
        for observer in self._observers:
            if offers(observer, _Remembers):
                name = type(observer).__qualname__
                yield name, counted[name], observer
                counted[name] += 1

    def see(self, now: Progress) -> None:
        """Tell of a step, and of the evaluation before it."""
        if not self._observers:
            return
        self._start(now, before=now.done - 1)
        self._last = now
        self._tell_evaluations(now)
        report = now.recorder.series.last
        if report is not None:
            seen = StepSeen(now.done, now.epoch, report)
            self._tell(f"step {now.done}", lambda observer: observer.step(seen))

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Where the run is broken off in here, tell of the last evaluation and of that, whatever comes of it."""
        try:
            yield
        except BaseException:
            if self._last is not None:
                with suppress(Exception):  # of an observer, which may have failed already; the first error is raised
                    self._tell_evaluations(self._last)
            if self._has_started:
                for observer in self._observers:
                    with suppress(Exception):
                        observer.broken_off()
            raise

    def finish(self, now: Progress) -> None:
        """Tell of the last evaluation, and that nothing more comes.

        Also where no step was left to take: the process before may have ended between its last checkpoint and this.
        """
        if self._observers:
            self._start(now, before=now.done)
            self._tell_evaluations(now)
            self._tell("finish", lambda observer: observer.finish())

    def _start(self, now: Progress, *, before: int) -> None:
        """Tell where this process begins, once."""
        if self._has_started:
            return
        self._has_started = True
        # Evaluations before the restart were told by the process before; the one right at it comes again, since a log
        # may have been cut off there.
        self._told = sum(step < before for step in now.recorder.steps)
        start = RunStart(self._config, self._directory, before)
        self._tell("start", lambda observer: observer.start(start))

    def _tell_evaluations(self, now: Progress) -> None:
        recorder = now.recorder
        # The callback comes after steps only, so that an evaluation is told with the step that follows it.
        while (k := self._told) < len(recorder.history):
            self._told += 1  # before: one that is broken off is told in full by the process that goes on
            splits = {"train": recorder.training[k], **recorder.history[k]}
            values = {split: MappingProxyType(dict(found)) for split, found in splits.items()}
            seconds = MappingProxyType(dict(recorder.times[k]))
            seen = EvaluationSeen(recorder.steps[k], recorder.epochs[k], MappingProxyType(values), seconds)
            self._tell(f"the evaluation at step {seen.step}", lambda observer, seen=seen: observer.evaluation(seen))  # type: ignore[misc]

    def _tell(self, what: str, call: Callable[[Observer], None], *, only: Observer | None = None) -> None:
        for observer in self._observers if only is None else (only,):
            with _unchanged():
                try:
                    call(observer)
                except Exception as error:
                    name = type(observer).__name__
                    raise ObserverError(
                        f"observer {name} must not fail, got {type(error).__name__} at {what}: {error}. Start the run "
                        "again without it, or mended: it goes on from its last checkpoint."
                    ) from error


@contextmanager
def _unchanged() -> Iterator[None]:
    """Whatever global state an observer may touch is given back: its draws must not shift the run's."""
    random, grad, dtype, threads = (
        random_state(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )
    try:
        yield
    finally:
        set_random_state(random)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
