"""A training run that can be killed at any moment and gives the same numbers when it is started again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.batching.randomness import seeded
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.origin import origin
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.following import follow
from mtl_benchmarks.engine.observers import Observer
from mtl_benchmarks.engine.precision import arithmetic
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.watching import Watching, make_ready
from mtl_benchmarks.ranks import current_ranks
from mtl_benchmarks.runs.work import Work
from mtl_benchmarks.storage.environment import differences
from mtl_benchmarks.storage.results import RunDirectory
from mtl_benchmarks.storage.tables import events_from
from mtl_core import DamagedFileError, InvalidInputError, InvalidParameterError, ResultsDirectoryError
from mtl_core.checks import positive_int

__all__ = ["RunResult", "load_result", "read_run_config", "refuse_other_ranks", "run", "warn"]


@dataclass(frozen=True)
class RunResult:
    """A complete run, or one that stopped because its numbers became none (``runs.ended``).

    Attributes:
        config: its resolved configuration.
        directory: where its files are.
        values: the reported value of each metric.
        events: what happened in it, in order.
        seconds: time spent in training steps, without evaluations and checkpoints.
        identity: drawn when the run began; a copy has the same one.
        notes: what was said while it was trained, such as other versions after a restart.
        stopped: where its numbers became none; empty for a complete run. Its values are NaN then, and neither its
            events nor its seconds are known.
    """

    config: RunConfig
    directory: Path
    values: Mapping[str, float]
    events: tuple[Mapping[str, Any], ...]
    seconds: float
    identity: str = ""
    notes: tuple[str, ...] = ()
    stopped: str = ""

    @property
    def has_diverged(self) -> bool:
        """Whether it stopped, or ended with a metric that is not finite."""
        return bool(self.stopped) or not all(map(math.isfinite, self.values.values()))


def run(
    config: RunConfig,
    directory: str | Path,
    *,
    checkpoint_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    observers: Sequence[Observer] = (),
    loading: Loading = Loading(),
    say: Callable[[str], None] | None = None,
    preparing: Callable[[str], None] | None = None,
) -> RunResult:
    """Train once, or finish what an earlier call with the same arguments began.

    After every evaluation (and every ``checkpoint_every`` steps) a checkpoint with the model, the optimiser, the
    method, all random number generators and the position in the data is written; the one before is kept. A call that
    finds one goes on from there; on the same machine and versions its metrics equal those of an unbroken run bit for
    bit. A complete run is only read. Its tables, where damaged, are written again from its checkpoint, which is said.

    Args:
        config: the resolved configuration.
        directory: the run's own directory.
        checkpoint_every: steps between checkpoints on the way from one evaluation to the next; None: none there.
        progress: called after every step.
        observers: see its steps and evaluations, and cannot change its numbers; those of a complete run hold against
            its result what they wrote, and are not called otherwise.
        loading: how data is read ahead, where a benchmark reads it sample by sample; what reads ends with the run.
        say: called with what a person should know, such as other versions than before the restart; None: a warning.
        preparing: called with a line now and then while a benchmark makes what is made once on a machine, such as
            demonstrations; None: silence.

    Returns:
        the complete run.

    Where ``torchrun`` started several processes and they have a process group, all of them call this; the first alone
    touches the directory.

    Raises:
        ObserverError: an observer raised an error; the text says which.
        InvalidParameterError: the configuration is one of another number of processes.
        ResultsDirectoryError: ``directory`` holds something else, a run with another configuration, one that another
            process is working on, or a damaged file, a log among them; or it cannot be read or written. The text names
            the file.
        NonFiniteStateError: parameters, buffers or optimiser state became NaN or infinite. The last checkpoint from
            before stays.
    """
    if checkpoint_every is not None:
        positive_int("checkpoint_every", checkpoint_every)
    refuse_other_ranks(config)
    ranks = current_ranks()
    # Of an earlier run in the same processes.
    ranks.has_parted = False
    # The others hear from the first what to do; files are its business alone.
    if not ranks.is_first:
        found: RunResult = follow(config, ranks, loading)
        return found
    with ranks.leading():
        result = _run_first(config, directory, checkpoint_every, progress, loading, observers, say or warn, preparing)
        ranks.say("end")
    shared: RunResult = ranks.share(result)
    return shared


def refuse_other_ranks(config: RunConfig) -> None:
    """Refuse the configuration of a run of another number of processes.

    Raises:
        InvalidParameterError: it is one.
    """
    size = current_ranks().size
    if config.ranks != size:
        raise InvalidParameterError(
            f"`ranks` must be the number of processes, got {config.ranks} with {size}. Start {config.ranks} by "
            "torchrun, or resolve the configuration where they run."
        )


def _run_first(
    config: RunConfig,
    directory: str | Path,
    checkpoint_every: int | None,
    progress: Callable[[Progress], None] | None,
    loading: Loading,
    observers: Sequence[Observer],
    say: Callable[[str], None],
    preparing: Callable[[str], None] | None,
) -> RunResult:
    files, settings = RunDirectory(directory), config.as_dict()
    # Before any lock: a complete run on a disk that cannot be written to can still be read.
    watching = Watching(observers, config, files.path)
    if _is_complete(files, settings):
        _say_what_has_changed(files, config, say)
    else:
        make_ready(observers, files.path)
        make_benchmark(config.benchmark).prepare(preparing or _silence)
        precise = arithmetic(config.training.precision, device=config.device)
        with (
            # In this order: the lock before anything is drawn or made, and the work closed before generators and lock
            # are given back.
            files.working(settings) as unlocked,
            seeded(config.seed, threads=config.threads),
            precise,
            closing(Work(config, files, say, loading=loading)) as work,
        ):
            if unlocked is not None:
                work.say(f"{unlocked}: see to it that no other process works on this run")
            with watching.until_the_end():
                work.complete(every=checkpoint_every, watching=watching, progress=progress)
    if not watching.has_begun:
        _look_back(files, watching)
    # Read back even where it was just written, so that a run that was resumed and one that was read give the same
    # object.
    return load_result(directory)


def load_result(directory: str | Path) -> RunResult:
    """Read a complete run, and make sure that its files are what was written.

    Raises:
        DamagedFileError: one is not; the text names it and says what to do.
        ResultsDirectoryError: there is no run, or it is not complete.
    """
    files = RunDirectory.existing(directory)
    try:
        result = files.read_result()
        tables = {} if result is None else files.read_tables(result)
    except DamagedFileError as error:
        again = "Give the command of this run again: what can be is written again from the checkpoint."
        raise DamagedFileError(f"{error} {again}", path=error.path) from None
    if result is None:
        raise ResultsDirectoryError(
            f"`directory` must hold a complete run, got {str(directory)!r} without result.json, which was broken off. "
            "Start it again to finish it."
        )
    files.refuse_other_checkpoint(result)
    return RunResult(
        read_run_config(files),
        files.path,
        result["values"],
        tuple(events_from(tables["events.jsonl"], files.path / "events.jsonl")),
        float(result["seconds"]),
        result["run"],
        tuple(result["notes"]),
    )


def read_run_config(files: RunDirectory) -> RunConfig:
    """The configuration of the run that lives in a directory.

    Raises:
        DamagedFileError: it is not what was written.
        ResultsDirectoryError: it is one of another version.
    """
    try:
        return RunConfig.from_dict(files.read_config())
    except (InvalidInputError, KeyError, TypeError, AttributeError) as error:
        raise ResultsDirectoryError(
            f"`{files.config_file.name}` in {str(files.path)!r} must be a configuration of this version of "
            f"mtl-benchmarks, got one that does not fit ({error}). Read it with the version that wrote it."
        ) from error


def warn(text: str) -> None:
    """How a person is told what they should know where nothing else was asked for."""
    warnings.warn(text, stacklevel=2)


def _silence(text: str) -> None:
    """What has no listener."""


def _say_what_has_changed(files: RunDirectory, config: RunConfig, say: Callable[[str], None]) -> None:
    """A complete run is read whatever became of its code and data since, which are part of no configuration."""
    sessions = files.read_sessions()
    recorded = sessions[-1]["environment"] if sessions else {}
    now = origin(config)
    # Versions of packages do not count here: whoever upgrades one wants to keep the runs from before.
    changed = differences({kind: recorded[kind] for kind in now if kind in recorded}, now)
    if changed:
        say(
            f"{files.path}: is complete and is not trained again with {', '.join(changed)}: its numbers are those of "
            "before. Choose another directory to train anew."
        )


def _look_back(files: RunDirectory, watching: Watching) -> None:
    """Have the observers of a complete run hold what they wrote against its result; what is gone is not missed."""
    result = files.read_result()
    # Without an observer that saw it to its end there is nothing to hold anything against.
    if result is not None and result.get("observers"):
        watching.look_back(result["observers"], _silence)


def _is_complete(files: RunDirectory, settings: Mapping[str, Any]) -> bool:
    """Whether the run is there with all its tables as they were written; nothing is locked or touched for that."""
    if not files.refuse_other(settings):
        return False
    try:
        result = files.read_result()
        if result is not None:
            files.read_tables(result)
    except DamagedFileError:
        return False
    return result is not None
