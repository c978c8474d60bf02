"""What one process does on a run whose directory it holds: go on, save, stop, finish, mend."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.configuration.origin import origin
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.divergence import Watch
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.series import PAIR_HEADER, STEP_HEADER, gradient_header
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.engine.watching import Watching
from mtl_benchmarks.runs.forgotten import Forgotten, gone_on_without, may_be_lost
from mtl_benchmarks.runs.showing import Showing
from mtl_benchmarks.storage.checkpoint import Checkpoint, config_digest
from mtl_benchmarks.storage.environment import Sessions
from mtl_benchmarks.storage.files import digest_of, exists
from mtl_benchmarks.storage.results import RunDirectory
from mtl_benchmarks.storage.tables import lines, table
from mtl_core import (
    DamagedFileError,
    InvalidInputError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteStateError,
    ResultsDirectoryError,
)

__all__ = ["Work"]

_NOTHING_TO_WRITE_IT_FROM = (
    "There is no checkpoint of the finished run that it could be written from. Move result.json away and give the "
    "command of this run again to train what is missing."
)
_FORGOTTEN = "forgotten"  # under which a checkpoint names what it does not hold


class Work:
    """One process's work on a run.

    Args:
        config: the run's.
        files: its directory, which this process holds.
        say: called with what a person should know.
        loading: how data is read ahead.

    Raises:
        ResultsDirectoryError: the checkpoint is damaged, of another run, or does not fit this version's objects.
    """

    def __init__(
        self, config: RunConfig, files: RunDirectory, say: Callable[[str], None], *, loading: Loading = Loading()
    ) -> None:
        self.config = config
        self.files = files
        self._showing = Showing()
        self.say: Callable[[str], None] = lambda text: say(f"{files.path}: {text}.")
        # Before anything is made: a damaged checkpoint needs no model, and leaves no processes that read data.
        self.found = files.checkpoints.read(config.as_dict())
        self.identity = uuid.uuid4().hex if self.found is None else self.found.run
        self.sessions = Sessions(() if self.found is None else self.found.sessions, say=self.say)
        # Of the file as it lies there, for a run that is complete but for its result.
        self.seal = files.checkpoints.seal()
        self.safe = None if self.found is None else self.found.position
        self.has_saved = False
        # The model is made and initialised even where a checkpoint follows: it loads into it, and draws are the same as
        # before.
        self.trainer = Trainer(config, loading=loading)
        self.watch = Watch(self.trainer)
        earlier = () if self.found is None else self.found.state.get(_FORGOTTEN, ())
        self.forgotten = Forgotten(self.trainer, earlier)
        if self.found is not None:
            try:
                self._load(self.found)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End the processes that read data."""
        self.trainer.close()

    def complete(
        self,
        *,
        every: int | None,
        watching: Watching,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """Do what is left to do.

        Args:
            every: steps between checkpoints on the way from one evaluation to the next; None: none there.
            watching: sees every step before its checkpoint, and the end before the result of a run is first written, so
                that no process that ends in between leaves a complete run without it.
            progress: called after every step, and its checkpoint.

        Raises:
            ResultsDirectoryError: a file cannot be written, or is damaged and cannot be written again.
            ObserverError: an observer raised an error.
            NonFiniteStateError: the run's numbers became NaN or infinite.
        """
        was_complete = False
        try:
            result = self.files.read_result()
        except DamagedFileError as error:
            was_complete = True
            if self.found is None:
                raise DamagedFileError(f"{error} {_NOTHING_TO_WRITE_IT_FROM}", path=error.path) from None
            self.say("result.json is damaged and is written again from the checkpoint")
            result = None
        if result is not None:
            self._mend(result)
            return
        if self.found is not None:
            watching.look_back(self.found.observers, self.say)
        # A run that was broken off between its last checkpoint and its result has nothing left to train.
        if not self.trainer.is_finished:
            self._begin()
        while not self.trainer.is_finished:
            self._advance(every, watching, progress)
            # After the checkpoint, from what it holds: tables never show what a restart would have to train again.
            self._show()
        if not was_complete:
            watching.finish(self.trainer.progress)
        self._finish(watching)

    def _show(self) -> None:
        """Write the tables as they stand, for who looks at a run that goes on."""
        due = self._showing.after(len(self.trainer.recorder.history))
        if due.tables:
            for name, content in self._tables(series=due.series).items():
                self.files.write_table(name, content)

    @property
    def _position(self) -> dict[str, int]:
        return {"epoch": self.trainer.step // self.trainer.steps_per_epoch, "step": self.trainer.step}

    def _load(self, found: Checkpoint) -> None:
        try:
            self.trainer.load_state_dict(found.state)
        except InvalidInputError:
            raise
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            # Its digest is right, so that it is not damaged: it is of another version.
            packages = ", ".join(f"{k} {v}" for k, v in found.sessions[-1]["environment"]["packages"].items())
            raise ResultsDirectoryError(
                f"the checkpoint in {str(self.files.path)!r} must fit the objects of this version, got a state that "
                f"does not ({type(error).__name__}: {error}). It was written with {packages}: use these, or choose "
                "another directory."
            ) from error

    def _begin(self) -> None:
        """Say what is to be said about going on."""
        # Now that the parts are made: a benchmark may have written into its folder first.
        self.sessions.begin(self._position, origin(self.config))
        if self.found is None and exists(self.files.path / "metrics.csv"):
            self.sessions.note("there are tables but no checkpoint any more, so that it begins anew")
        elif self.found is not None and not exists(self.files.checkpoints.newest):
            self.sessions.note(f"goes on from {self.files.checkpoints.previous.name}, there being no newer checkpoint")
        if self.forgotten.names:
            self.sessions.note(gone_on_without(self.forgotten.names))
        stopped = self.files.read_stopped()
        if stopped is not None:
            self.sessions.note(f"has stopped before, {stopped.rstrip('.')}")
        self.files.write_table("environment.json", self.sessions.table())

    def _advance(self, every: int | None, watching: Watching, progress: Callable[[Progress], None] | None) -> None:
        save, seen = partial(self._save, watching), self.forgotten.beside(watching.see)
        try:
            self.trainer.advance(save=save, every=every, seen=seen, progress=progress)
            save()
        except (NonFiniteStateError, ResultsDirectoryError):
            raise
        except (NonFiniteLossError, NonFiniteGradientError) as error:
            # A loss that is NaN is mostly that of parameters that are: they are named if so.
            self._stop(self._non_finite() or str(error), cause=error)
        except Exception as error:
            # What an evaluation or a method says about NaN is not the cause; the NaN is.
            bad = self._non_finite()
            if not bad:
                raise
            self._stop(bad, cause=error)

    def _save(self, watching: Watching) -> None:
        self._refuse_non_finite()
        state = self.trainer.state_dict()
        if self.trainer.ranks.size > 1:
            # Each process sees its own part of a model; the whole of it is here.
            self._refuse_non_finite(state["model"])
        self._look_for_what_is_forgotten()
        state[_FORGOTTEN] = self.forgotten.names
        self.sessions.reached(self._position)
        digest = config_digest(self.config.as_dict())
        checkpoint = Checkpoint(self.identity, digest, self.sessions.listed, state, watching.state_dict())
        # Read back the first time only: what a method's state is made of does not change within a run, and reading
        # takes as long as writing.
        self.seal = self.files.checkpoints.write(checkpoint, verify=not self.has_saved)
        self.has_saved, self.safe = True, self._position

    def _look_for_what_is_forgotten(self) -> None:
        new = self.forgotten.look()
        if new and self.found is None:
            self.say(may_be_lost(new))
        elif new:
            self.sessions.note(gone_on_without(new))

    def _non_finite(self, whole: Mapping[str, Any] | None = None) -> str:
        names = self.watch.found() if whole is None else self.watch.found_in(whole)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"{', '.join(names[:5])}{more} NaN or infinite." if names else ""

    def _refuse_non_finite(self, whole: Mapping[str, Any] | None = None) -> None:
        bad = self._non_finite(whole)
        if bad:
            self._stop(bad)

    def _stop(self, what: str, *, cause: Exception | None = None) -> NoReturn:
        """End the run where its numbers are none, and leave word for who starts it again."""
        at = self._position
        # Counted from 1, of the step that was taken last.
        epoch = max(0, at["step"] - 1) // self.trainer.steps_per_epoch + 1
        place = f"in epoch {epoch}, after {at['step']} of {self.trainer.total_steps} steps: {what}"
        stays = "There is no checkpoint from before."
        if self.safe is not None:
            stays = f"The checkpoint of epoch {self.safe['epoch']}, step {self.safe['step']}, is from before and stays."
        try:
            self.files.write_stopped({**at, "what": place})
        except ResultsDirectoryError as error:
            stays = f"{stays} This could not be noted: {error}"
        raise NonFiniteStateError(
            f"the run in {str(self.files.path)!r} must stay finite, stopped {place} {stays} Train with a smaller `lr`, "
            "with clipping or another method, in a directory of its own.",
            epoch=at["epoch"],
            step=at["step"],
        ) from cause

    def _tables(self, *, series: bool = True) -> dict[str, bytes]:
        """Every table, as the checkpoint has it; those of single steps only with ``series``."""
        recorder = self.trainer.recorder
        metrics = {each.name: (each.task, each.unit, each.higher_is_better) for each in self.trainer.benchmark.metrics}
        header = ("epoch", "step", "split", "task", "metric", "unit", "higher_is_better", "value")
        found = {
            "metrics.csv": table(header, recorder.metric_rows(metrics)),
            "times.csv": table(("epoch", "step", "part", "seconds"), recorder.time_rows()),
            "events.jsonl": lines(recorder.events),
            "environment.json": self.sessions.table(),
        }
        if not series:
            return found
        found["steps.csv"] = table(STEP_HEADER, recorder.series.step_rows())
        found["cosines.csv"] = table(PAIR_HEADER, recorder.pair_rows())
        if recorder.series.gradients.items:
            found["gradients.csv"] = table(gradient_header(recorder.tasks), recorder.series.gradient_rows())
        if recorder.trace:
            found["trace.csv"] = table([f"x{k + 1}" for k in range(len(recorder.trace[0]))], recorder.trace)
        return found

    def _finish(self, watching: Watching) -> None:
        """Write the tables so that they last, then the result that vouches for them."""
        tables = self._tables()
        for name, content in tables.items():
            self.files.write_table(name, content, durable=True)
        self.files.write_result(
            {
                "run": self.identity,
                "config": config_digest(self.config.as_dict()),
                "values": self.trainer.reported(),
                "seconds": self.trainer.seconds,
                "steps": self._position["step"],
                "checkpoint": self.seal,
                "notes": self.sessions.notes,
                "tables": {name: digest_of(content) for name, content in tables.items()},
                "observers": watching.state_dict(),
            }
        )
        self.files.forget_stopped()

    def _mend(self, result: Mapping[str, Any]) -> None:
        """Write damaged tables of a complete run again, if the checkpoint gives those that the result knows."""
        try:
            self.files.read_tables(result)
        except DamagedFileError as error:
            # Of those that it has: a version before may have written fewer.
            tables = {name: content for name, content in self._tables().items() if name in result["tables"]}
            digests = {name: digest_of(content) for name, content in tables.items()}
            if not self.trainer.is_finished or digests != result["tables"]:
                raise DamagedFileError(f"{error} {_NOTHING_TO_WRITE_IT_FROM}", path=error.path) from None
            for name, content in tables.items():
                self.files.write_table(name, content, durable=True)
            self.files.read_tables(result)
            self.say(f"{error.path.name if error.path else 'a table'} was damaged and is written again")
